"""Names of values and nodes: which ones tell something, new ones that clash with nothing, one in place of another."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_ir as ir

MAP = "edgepack.map"
"""Where an output of a graph keeps its type that holds a map: the graph library has no such type."""

_NUMBERED = re.compile(
    r"(.*[/:])?"  # a scope
    r"(onnx::\w+?|const(ant)?|const_fold_opt|val|value|initializer|init|tensor|data|tmp)?"
    r"(_output)?[_.]*\d*(_output)?(_\d+)*(:\d+)?",
    re.IGNORECASE,
)


def is_meaningful(name: str) -> bool:
    """False for names that an exporter counted out, like "onnx::MatMul_123", "val_7" or "a/b/Const_24:0"."""
    return _NUMBERED.fullmatch(name) is None


def constant_names(model: ir.Model) -> list[str]:
    """Names of all initializers and Constant nodes, subgraphs and functions included."""
    graphs = [
        *model.graphs(),
        *(graph for body in model.functions.values() for graph in (body.graph, *body.subgraphs())),
    ]
    held = [name for graph in graphs for name in graph.initializers]
    return held + [node.outputs[0].name or "" for graph in graphs for node in graph if node.op_type == "Constant"]


class Names:
    """Every name in use in a model, all scopes together: a subgraph must not hide a name of the graph around it."""

    def __init__(self, model: ir.Model) -> None:
        self._taken: set[str] = set()
        for graph in (*model.graphs(), *(function.graph for function in model.functions.values())):
            self._add_graph(graph)
        for function in model.functions.values():
            for subgraph in function.subgraphs():
                self._add_graph(subgraph)

    def _add_graph(self, graph: ir.Graph) -> None:
        self._taken.update(value.name for value in graph.inputs if value.name)
        self._taken.update(graph.initializers)
        for node in graph:
            self._taken.update(value.name for value in node.outputs if value.name)
            if node.name:
                self._taken.add(node.name)

    def unique(self, base: str) -> str:
        """`base`, or `base` with the first number that makes it new; taken from then on."""
        name, number = base, 2
        while name in self._taken:
            name, number = f"{base}_{number}", number + 1
        self._taken.add(name)
        return name


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Let `new` be to all the graph what `old` was: name, type, shape, notes, consumers, graph output."""
    new.name, new.type, new.shape, new.doc_string = old.name, old.type, old.shape, old.doc_string
    new.metadata_props.update(old.metadata_props)
    new.meta.update(old.meta)
    old.replace_all_uses_with(new, replace_graph_outputs=True)


@contextmanager
def quiet(name: str) -> Iterator[None]:
    """Only errors of the named logger within the block."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
