"""`python bench/seeds` reruns the seeds' experiments and prints one table; `--keep` puts it into bench/RESULTS.md."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parent.parent)  # the folder of the scripts beside this one
    from seeds.command import main

    main()
