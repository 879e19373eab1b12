from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from edgepack.sources.torch import export_onnx

sys.path.append(str(Path(__file__).parents[2] / "bench" / "models"))  # a folder of recipes, not a package
from lstm_classifier import PIXELS, STEPS, Cell, Classifier
