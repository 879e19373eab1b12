"""What a plan costs on a target that is not at hand: its layers at their ranks and rows, by a table of costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from edgepack.data import Samples, example
from edgepack.errors import ModelError
from edgepack.pipeline.observe import Observation, joined
from edgepack.pipeline.onnx_files import split_form
from edgepack.pipeline.opened import Opened
from edgepack.plan import cost
from edgepack.plan.cost import Cost, CostSource, EmulatedCosts
from edgepack.plan.table import Point
from edgepack.plan.table_file import table_for
from edgepack.targets import Target
from edgepack.types import Format, LayerPlan


@dataclass(frozen=True)
class Uses:
    """Where a layer stands: in `places` nodes, each of which multiplies `rows` rows per inference."""

    places: int
    rows: int


@dataclass(frozen=True)
class Prices:
    """A source of costs for one model on one target.

    Attributes:
        source: for the target.
        uses: of every layer that an inference reaches.
    """

    source: CostSource
    uses: Mapping[str, Uses]

    def plan(self, fmt: Format, layers: Sequence[LayerPlan], form: str) -> Cost | None:
        """One inference of a model's linear layers in one form; None where the source lacks the form."""
        return self.source.cost(self._points(fmt, layers, split_form(form)[0]))

    def order(
        self, fmt: Format, layers: Sequence[LayerPlan], forms: Sequence[str]
    ) -> tuple[tuple[str, ...], str] | None:
        """Forms of these layers, cheapest first, and by which source; None where the source lacks one of them."""
        costs = {form: self.plan(fmt, layers, form) for form in forms}
        found = cost.ordered(costs)
        return None if found is None else (found, self.named(*costs.values()))

    def named(self, *costs: Cost | None) -> str:
        """The source of these costs, how far off it may be, and whether it had to be continued beyond its figures."""
        known = [one for one in costs if one is not None]
        error = max(known, key=lambda one: one.error_share).error if known else ""
        beyond = "extrapolated beyond its grid" if any(one.extrapolated for one in known) else ""
        return ", ".join(part for part in (self.source.name, error, beyond) if part)

    def _points(self, fmt: Format, layers: Sequence[LayerPlan], form: str) -> list[Point]:
        points = []
        for choice in layers:
            uses = self.uses.get(choice.layer, Uses(0, 0))
            shape = choice.out_features, choice.in_features, choice.rank
            points += [Point(fmt, form, *shape, uses.rows)] * uses.places
        return points


def prices_for(target: Target, opened: Opened, samples: Samples | None, seed: int) -> Prices | None:
    """Prices by the emulated table of the target's CPU; None where there is none, or the rows of a layer are not known.

    Raises:
        InputError: the table is damaged.
    """
    table = table_for(target)
    if table is None:
        return None
    uses = _uses(opened, samples, seed)
    return None if uses is None else Prices(EmulatedCosts(table, target), uses)


def _uses(opened: Opened, samples: Samples | None, seed: int) -> dict[str, Uses] | None:
    try:
        observation = Observation(opened.model, [layer.name for layer in opened.layers])
        counts = observation.row_counts(example(samples, opened.inputs, seed))
    except ModelError:
        if samples is not None:
            raise
        return None
    if len(observation.keys) < len(opened.layers):
        return None
    rows = {layer.name: counts[joined(observation.keys[layer.name])] for layer in opened.layers}
    # The rows of a weight in several places are those of all of them together.
    return {
        layer.name: Uses(layer.uses, max(1, rows[layer.name] // layer.uses))
        for layer in opened.layers
        if rows[layer.name]
    }
