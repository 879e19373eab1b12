"""The form of a whole file and the forms of its layers that differ from it."""

from __future__ import annotations

from collections.abc import Sequence

from edgepack.formats import CODED, RESIDUAL_FORMS, plain_form
from edgepack.types import LayerPlan

MIXED = "mixed"


def base_form(layers: Sequence[LayerPlan], beside_code: str = "fp32") -> str:
    """The form that most weight parameters take; of equals the first by name. A pair beside a matrix counts with it.

    Layers stored in code have no say: no other weight can be in their form.

    Args:
        beside_code: the form where there are no other layers: of all weights that are in no layer.
    """
    weights: dict[str, int] = {}
    for layer in layers:
        if layer.form not in (None, CODED):
            form, _ = RESIDUAL_FORMS.get(layer.form or "", (layer.form or "", None))
            weights[form] = weights.get(form, 0) + layer.weight_parameters
    return min(weights, key=lambda form: (-weights[form], form), default=beside_code)


def exceptions(layers: Sequence[LayerPlan], form: str) -> dict[str, str]:
    """Layer name → form, of the layers that differ from the file's `form`, whose suffix concerns no layer."""
    own = plain_form(form)
    return {layer.layer: layer.form for layer in layers if layer.form not in (None, own)}


def file_form(layers: Sequence[LayerPlan], form: str) -> str:
    """What to call the form of a file for people: `mixed` where its layers differ, with the suffix of the file."""
    own, plus, suffix = form.partition("+")
    forms = {layer.form_in(form) for layer in layers} or {own}
    alike = len(forms) == 1 and not forms.intersection(RESIDUAL_FORMS)  # two matrices of different forms
    return f"{forms.pop() if alike else MIXED}{plus}{suffix}"
