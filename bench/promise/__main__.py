"""`python bench/promise` builds what is missing of the promise table and writes it into bench/RESULTS.md."""

from __future__ import annotations

import sys
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).parent.parent)  # the folder of the scripts beside this one
    sys.path.insert(1, str(Path(__file__).parent.parent / "models"))
    from promise.command import main

    main()
