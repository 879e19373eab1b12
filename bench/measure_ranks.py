"""Rules that choose ranks of convolutions against the exact plan: predicted loss at equal multiplications.

`python bench/measure_ranks.py` trains the conv nets of `kinds_models` from three seeds, asks every rule, and writes the
section of bench/RESULTS.md.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import geometric_mean

from allocation.allocators import ALLOCATORS, Layers, Picks, latency, loss
from allocation.evbmf import evbmf_rank
from block_tables import markdown_table
from resumable import Row, carry_out, options

from edgepack.model.kinds import views_of
from edgepack.model.layer import Layer
from edgepack.model.types import Candidate
from edgepack.pipeline.options import BuildOptions
from edgepack.pipeline.prepare import prepared
from edgepack.targets.file import get_target
from edgepack.workspace import Cache, silent

NAME = "ranks"
COMMAND = "python bench/measure_ranks.py"
MODELS = ("vgg", "resnet8")
SEEDS = 3
SHARES = (0.3, 0.5, 0.7)
"""Of the multiplications of the dense layers."""
EVBMF = "evbmf"
RULES = (*(rule for rule in ALLOCATORS if rule != "exact"), EVBMF)
ABOUT = """Conv nets trained on real digits; every layer may be dense or have factors of its matrix, in float32. Each
rule picks the ranks of all layers within the same multiplications; EVBMF, which takes no bound, sets that of its
lines. Loss as the planner predicts it: the cells are that of the rule over that of the exact plan, the geometric mean
over the seeds; a dash where the rule finds no plan."""


def measure(seed: int, model: str) -> list[Row]:
    """A row for each share and for the multiplications of EVBMF's plan."""
    import kinds_models

    with tempfile.TemporaryDirectory(prefix="edgepack-bench-") as name:
        folder = Path(name)
        kinds_models.write(model, seed, kinds_models.Sizes(), folder)
        asked = BuildOptions(
            str(folder / "model.onnx"), get_target("rpi4"), folder / "data.npz", formats=("onnx",), precision="fp32"
        )
        with prepared(asked, Cache(), silent) as ready:
            given = ready.all_candidates["onnx"]
            layers = [[_by_macs(one) for one in own.candidates if _offered(one)] for own in given]
            picks = tuple(_evbmf(own.layer, candidates) for own, candidates in zip(given, layers, strict=True))
    dense = sum(next(one.latency_s for one in layer if one.structure.is_dense) for layer in layers)
    plans = [{"share": share, "loss": _losses(layers, share * dense)} for share in SHARES]
    bound = latency(layers, picks)
    return [*plans, {"share": bound / dense, "loss": _losses(layers, bound) | {EVBMF: loss(layers, picks)}}]


def _offered(candidate: Candidate) -> bool:
    return candidate.structure.is_dense or candidate.structure.is_low_rank


def _by_macs(candidate: Candidate) -> Candidate:
    """With multiplications in the place of the latency, which is all that the rules look at."""
    return replace(candidate, latency_s=float(sum(op.macs for op in candidate.ops)))


def _losses(layers: Layers, bound: float) -> dict[str, float | None]:
    plans: Mapping[str, Picks | None] = {rule: allocate(layers, bound) for rule, allocate in ALLOCATORS.items()}
    return {rule: None if picks is None else loss(layers, picks) for rule, picks in plans.items()}


def _evbmf(layer: Layer, candidates: Sequence[Candidate]) -> int:
    """The smallest rank that is no less than EVBMF's, else dense."""
    (view,) = views_of([layer])
    rank = max(evbmf_rank(view.weight), 1)
    ranks = {one.structure.rank: number for number, one in enumerate(candidates)}
    enough = [found for found in ranks if found is not None and found >= rank]
    return ranks[min(enough) if enough else None]


def render(rows: Sequence[Row]) -> str:
    """A line per model and share."""
    import kinds_models

    lines = []
    for model in MODELS:
        of_model = [row for row in rows if row["model"] == model]
        given = [(f"{share:.0%}", [row for row in of_model if row["share"] == share]) for share in SHARES]
        by_evbmf = [row for row in of_model if EVBMF in row["loss"]]
        shares = sorted(row["share"] for row in by_evbmf)
        given.append((f"EVBMF's {shares[0]:.0%} – {shares[-1]:.0%}" if shares else "", by_evbmf))
        lines += [
            [kinds_models.SUBJECTS[model].title, share, *(_cell(alike, rule) for rule in RULES)]
            for share, alike in given
            if alike
        ]
    headers = ["model", "MACs", *RULES]
    return f"{ABOUT}\n\n{markdown_table(headers, lines, right=headers[1:])}"


def _cell(rows: Sequence[Row], rule: str) -> str:
    ratios = [row["loss"][rule] / row["loss"]["exact"] for row in rows if row["loss"].get(rule) is not None]
    return f"{geometric_mean(ratios):.3g}×" if len(ratios) == len(rows) else "–"


if __name__ == "__main__":
    sys.path.insert(1, str(Path(__file__).parent / "models"))
    keys = [{"seed": seed, "model": model} for seed in range(SEEDS) for model in MODELS]
    carry_out(NAME, COMMAND, keys, measure, render, options(COMMAND, str(__doc__), MODELS).parse_args())
