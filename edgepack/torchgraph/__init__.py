"""Linear layers of an exported torch program: find them, match them with layers of elsewhere, put others in place."""

from edgepack.torchgraph.archive import load_program
from edgepack.torchgraph.factor import with_factors
from edgepack.torchgraph.flat import flat_module
from edgepack.torchgraph.fold import fold_batch_norms
from edgepack.torchgraph.linears import TorchLinear, find_linears
from edgepack.torchgraph.match import LayerKey, Matches, layer_key, match_layers

__all__ = [
    "LayerKey",
    "Matches",
    "TorchLinear",
    "find_linears",
    "flat_module",
    "fold_batch_norms",
    "layer_key",
    "load_program",
    "match_layers",
    "with_factors",
]
