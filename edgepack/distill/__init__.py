"""Distillation: thin layers trained against the original model's answers, without labels."""

from edgepack.distill.budget import Budget, Epochs, Seconds, parse_budget
from edgepack.distill.distil import Distilled, distil
from edgepack.distill.fake import Rounding, rounding_of
from edgepack.distill.layers import distill_factors
from edgepack.distill.state import Point
from edgepack.distill.student import Student, build_student

__all__ = [
    "Budget",
    "Distilled",
    "Epochs",
    "Point",
    "Rounding",
    "Seconds",
    "Student",
    "build_student",
    "distil",
    "distill_factors",
    "parse_budget",
    "rounding_of",
]
