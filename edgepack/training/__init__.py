"""Small layers learnt during training: low rank or stored in code, step by step, in any torch training loop."""

from edgepack.training.apply import apply_compression
from edgepack.training.compression import Compression
from edgepack.training.compressors import ByShare, Compressor, by_share
from edgepack.training.parts import parts
from edgepack.training.schedule import Schedule

__all__ = ["ByShare", "Compression", "Compressor", "Schedule", "apply_compression", "by_share", "parts"]
