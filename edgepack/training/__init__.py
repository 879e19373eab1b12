"""Low rank learnt during training: layers turn into pairs of thin ones step by step, in any torch training loop."""

from edgepack.training.compression import Compression, apply_compression
from edgepack.training.compressors import Compressor
from edgepack.training.schedule import Schedule

__all__ = ["Compression", "Compressor", "Schedule", "apply_compression"]
