"""Convolutions and recurrent layers on real digits: multiplications, bytes, accuracy and latency against dense int8.

`python bench/measure_kinds.py` trains every model from three seeds, builds it for this machine with and without
distillation, benches what is missing, and writes the section of bench/RESULTS.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from built_here import built_and_timed, table_of
from resumable import Row, carry_out, options

from edgepack.distill.budget import Epochs
from edgepack.pipeline.options import BuildOptions
from edgepack.targets.file import get_target
from edgepack.targets.target import HOST

if TYPE_CHECKING:
    from kinds_models import Sizes

NAME = "kinds"
COMMAND = "python bench/measure_kinds.py"
FAST: Mapping[str, Any] = {"max_drop": 0.5, "optimize": "latency"}
BUILDS: Mapping[str, Mapping[str, Any]] = {
    "`--max-drop 0.5 --optimize latency`": FAST,
    "`--max-drop 0.5 --optimize latency --distill 3epochs`": {**FAST, "distill": Epochs(3)},
}
SEEDS = 3
ABOUT = """Trained on {train:,} MNIST digits, built for this machine on {pool:,} others, of which distillation sees a
third, scored on {unseen:,} of the test; means over the seeds, which the verdicts count. *MACs*: those of the dense
model over the pack's. *Faster*: median latency of dense int8 over that of the pack, in fresh processes in turns;
*verdicts* are those of Mann–Whitney tests. A GRU comes out as a loop in LiteRT."""


def measure(sizes: Sizes, seed: int, model: str) -> list[Row]:
    """A row for each build and format of a model that is trained from the seed."""
    import kinds_models

    rows = []
    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as name:
        folder = Path(name)
        kinds_models.write(model, seed, sizes, folder)
        source, data, test = (folder / file for file in ("model.onnx", "data.npz", "test.npz"))
        for number, (build, given) in enumerate(BUILDS.items()):
            out = folder / f"pack{number}"
            asked = BuildOptions(str(source), get_target(HOST), data, test, out=out, **given)
            rows += [{"build": build, **row} for row in built_and_timed(asked)]
    return rows


def render(sizes: Sizes, rows: Sequence[Row]) -> str:
    """A line per model, build and format."""
    import kinds_models

    about = ABOUT.format(train=sizes.train, pool=sizes.pool, unseen=sizes.unseen)
    titles = {name: subject.title for name, subject in kinds_models.SUBJECTS.items()}
    ordered = sorted(rows, key=lambda row: (list(titles).index(row["model"]), list(BUILDS).index(row["build"])))
    return f"{about}\n\n{table_of(ordered, titles)}"


def main() -> None:
    """Measure what is missing; or one seed with few digits, which is printed and not kept."""
    sys.path.insert(1, str(Path(__file__).parent / "models"))
    import kinds_models

    parser = options(COMMAND, str(__doc__), list(kinds_models.SUBJECTS))
    parser.add_argument("--attempt", action="store_true", help="one seed, few digits: prints, and keeps nothing")
    given = parser.parse_args()
    if given.attempt:
        few = kinds_models.Sizes(4000, 1500, 1000, 2)
        names = given.only or list(kinds_models.SUBJECTS)
        print(render(few, [{"model": name, **row} for name in names for row in measure(few, 0, name)]))
        return
    sizes = kinds_models.Sizes()
    keys = [{"seed": seed, "model": model} for seed in range(SEEDS) for model in kinds_models.SUBJECTS]
    carry_out(NAME, COMMAND, keys, partial(measure, sizes), partial(render, sizes), given)


if __name__ == "__main__":
    main()
