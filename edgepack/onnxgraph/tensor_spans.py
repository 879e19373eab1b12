"""Where an ONNX file holds its tensors, byte for byte.

The file is walked in protobuf's wire format: a parsed message no longer knows where its bytes were.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from edgepack.transport.parts import Span

# onnx.proto: what leads to tensors, message → {field: message}.
_MODEL, _GRAPH, _NODE, _ATTRIBUTE, _FUNCTION, _SPARSE, _TENSOR = range(7)
_WAY: Mapping[int, Mapping[int, int]] = {
    _MODEL: {7: _GRAPH, 25: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
}
_DIMS, _DATA_TYPE, _FLOAT_DATA, _NAME, _RAW_DATA = 1, 2, 4, 8, 9
# TensorProto.DataType → bits per number.
_BITS: Mapping[int, int] = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 12: 32, 13: 64, 16: 16}
_BITS = {**_BITS, 17: 8, 18: 8, 19: 8, 20: 8, 21: 4, 22: 4, 23: 4}
_DEEPEST = 64


def tensor_spans(content: bytes) -> list[Span]:
    """The raw data (and lists of floats) of all tensors, in subgraphs and functions as well.

    Tensors whose data do not fit their shape are left out, and so is all behind a place that is no protobuf: that is no
    harm to who only wants to compress the file.
    """
    spans: list[Span] = []
    _walk(memoryview(content), 0, len(content), _MODEL, 0, spans)
    return spans


def _walk(content: memoryview, start: int, end: int, message: int, depth: int, spans: list[Span]) -> None:
    if message == _TENSOR:
        spans += _tensor(content, start, end)
        return
    if depth > _DEEPEST:
        return
    for field, wire, begin, stop in _fields(content, start, end):
        inner = _WAY[message].get(field)
        if inner is not None and wire == 2:
            _walk(content, begin, stop, inner, depth + 1, spans)


def _tensor(content: memoryview, start: int, end: int) -> list[Span]:
    dims: list[int] = []
    kind, name = 0, ""
    raw: tuple[int, int] | None = None
    for field, wire, begin, stop in _fields(content, start, end):
        if field == _DIMS:
            dims += _numbers(content, begin, stop)
        elif field == _DATA_TYPE and wire == 0:
            kind = _varint(content, begin, stop)[0]
        elif field == _NAME and wire == 2:
            name = bytes(content[begin:stop]).decode(errors="replace")
        elif wire == 2 and field in (_RAW_DATA, _FLOAT_DATA):
            raw = begin, stop
    if raw is None or kind not in _BITS:
        return []
    span = Span(name, raw[0], _BITS[kind], tuple(dims))
    return [span] if span.size_bytes == raw[1] - raw[0] else []


def _numbers(content: memoryview, begin: int, stop: int) -> Sequence[int]:
    found = []
    while begin < stop:
        value, begin = _varint(content, begin, stop)
        if begin < 0:
            break
        found.append(value)
    return found


def _fields(content: memoryview, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """(field, wire type, first byte, end) of each field of a message, up to the first that is none."""
    place = start
    while 0 <= place < end:
        key, place = _varint(content, place, end)
        if place < 0:
            return
        wire, begin = key & 7, place
        if wire == 0:
            place = _varint(content, place, end)[1]
        elif wire == 2:
            length, begin = _varint(content, place, end)
            place = -1 if begin < 0 else begin + length
        else:
            place = begin + {1: 8, 5: 4}.get(wire, end + 1)
        if place < 0 or place > end:
            return
        yield key >> 3, wire, begin, place


def _varint(content: memoryview, place: int, end: int) -> tuple[int, int]:
    """A number and where it ends, −1 where there is none."""
    value = 0
    for shift in range(0, 70, 7):
        if place >= end:
            return 0, -1
        byte = content[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    return 0, -1
