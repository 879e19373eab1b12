"""Recovery: thin layers trained against the original model's answers, without labels."""

from edgepack.distill.budget import Budget, Epochs, Seconds, parse_budget
from edgepack.distill.distil import Recovered, distil
from edgepack.distill.fake import Rounding, rounding_of
from edgepack.distill.layers import recover_factors
from edgepack.distill.state import Point
from edgepack.distill.student import Student, build_student

__all__ = [
    "Budget",
    "Epochs",
    "Point",
    "Recovered",
    "Rounding",
    "Seconds",
    "Student",
    "build_student",
    "distil",
    "parse_budget",
    "recover_factors",
    "rounding_of",
]
