"""`python bench/accuracy --model mnist` measures one model; `--keep` puts it among the figures of bench/RESULTS.md."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parent.parent)  # the folder of the scripts beside this one
    from accuracy.command import main

    main()
