"""Recovery: thin layers trained against the original model's answers, without labels."""

from edgepack.recover.budget import Budget, Epochs, Seconds, parse_budget
from edgepack.recover.distil import Recovered, distil
from edgepack.recover.history import Point
from edgepack.recover.layers import recover_factors
from edgepack.recover.student import Student, build_student

__all__ = [
    "Budget",
    "Epochs",
    "Point",
    "Recovered",
    "Seconds",
    "Student",
    "build_student",
    "distil",
    "parse_budget",
    "recover_factors",
]
