"""Shapes of inputs that a model leaves open: as the user gives them, else as models usually have them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod

from edgepack.errors import ModelError, UsageError
from edgepack.model.types import TensorSpec
from edgepack.workers.sandbox import MORE, most_input_bytes

MOST_AXES, MOST_NAME = 32, 1000
"""Of an input: what arrays, and bytes that files of them, can have with something to spare."""
LARGEST = 2**31
"""Numbers of an input, below this."""
IMAGES = ((224, 224), (48, 320), (320, 320))
"""Heights and widths of images, that of a line of text among them, where a model leaves them open."""
LENGTHS = (1, 16, 512, 256, 16000)
"""Of sequences: tokens, a frame of sound at 16 or 8 kHz, a second of it."""
CHANNELS = frozenset({1, 3, 4})
_FORM = re.compile(r"(?P<name>.+)=(?P<shape>[0-9]{1,10}(x[0-9]{1,10})*)(:(?P<dtype>[a-z]+[0-9]*))?")


@dataclass(frozen=True)
class GivenInput:
    """What `--input` says of one input: its whole shape, and its type where that was given."""

    name: str
    shape: tuple[int, ...]
    dtype: str | None = None

    def __str__(self) -> str:
        return f"--input {self.name}={'x'.join(map(str, self.shape))}{'' if self.dtype is None else f':{self.dtype}'}"


def parse_input(text: str) -> GivenInput:
    """`x=1x3x320x320` or `ids=1x64:int64`.

    Raises:
        UsageError: anything else, a side of 0, or too many numbers.
    """
    found = _FORM.fullmatch(text)
    if found is None:
        raise UsageError(f"--input {text}: expected NAME=1x3x224x224, and a dtype behind a colon if you like")
    shape = tuple(int(side) for side in found["shape"].split("x"))
    if not 0 < prod(shape) < LARGEST:
        raise UsageError(f"--input {text}: expected from 1 to {LARGEST - 1} numbers")
    return GivenInput(found["name"], shape, found["dtype"])


def with_shapes(specs: Sequence[TensorSpec], given: Sequence[GivenInput]) -> tuple[TensorSpec, ...]:
    """The inputs with the sides that were given. A batch of 1 stays open where it was.

    Raises:
        UsageError: there is no such input, or it has other sides or another type.
    """
    known = {spec.name: spec for spec in specs}
    for one in given:
        if one.name not in known:
            raise UsageError(f"{one}: the model has no such input", hint=f"its inputs are {', '.join(known)}")
        known[one.name] = _fixed(known[one.name], one)
    return tuple(known.values())


def _fixed(spec: TensorSpec, given: GivenInput) -> TensorSpec:
    fits = len(spec.shape) == len(given.shape) and all(
        own in (None, side) for own, side in zip(spec.shape, given.shape, strict=False)
    )
    if not fits:
        raise UsageError(f"{given}: the model takes {shown(spec)}")
    if given.dtype not in (None, spec.dtype.name):
        raise UsageError(f"{given}: the model takes {spec.dtype.name}")
    first = [None] if spec.shape[:1] == (None,) and given.shape[0] == 1 else list(given.shape[:1])
    return replace(spec, shape=(*first, *given.shape[1:]))


def check_sizes(specs: Sequence[TensorSpec], name: str) -> None:
    """Refuse a file whose inputs claim too much, before anything is made for them.

    Raises:
        ModelError: they are over `most_input_bytes` in one inference, or one has too many axes or too long a name.
    """
    most = most_input_bytes()
    for spec in specs:
        if len(spec.name.encode()) > MOST_NAME or len(spec.shape) > MOST_AXES:
            raise ModelError(
                f"{name}: its input {spec.name[:40]!r} has a name of {len(spec.name.encode())} bytes and "
                f"{len(spec.shape)} axes, expected at most {MOST_NAME} and {MOST_AXES}",
                hint="export the model again",
            )
        size = prod(side or 1 for side in spec.shape) * spec.dtype.itemsize
        if size > most:
            raise ModelError(
                f"{name}: its input {spec.name!r} takes {shown(spec)}, {size} bytes in one inference, "
                f"expected at most {most}",
                hint=f"export it with a smaller batch: what is measured is one inference; or {MORE}",
            )


def usual_sides(specs: Sequence[TensorSpec]) -> Iterator[tuple[TensorSpec, ...]]:
    """The inputs with sides as models have them, the likeliest first: images of `IMAGES`, and sequences of `LENGTHS`,
    along the last axis of an input or along all but the batch. Lengths of 1, and batches, stay open.

    An image has four axes, and on the second or the last of them a number of channels that images have.
    """
    seen = set()
    for (height, width), length, last in product(IMAGES, LENGTHS, (True, False)):
        found = tuple(_image(spec, height, width) or _sequence(spec, length, last=last) for spec in specs)
        if found not in seen:
            seen.add(found)
            yield found


def with_usual_sides(spec: TensorSpec) -> TensorSpec:
    """An input with the likeliest sides where it looks like an image of open ones."""
    return _image(spec, *IMAGES[0]) or spec


def _image(spec: TensorSpec, height: int, width: int) -> TensorSpec | None:
    if len(spec.shape) != 4 or spec.dtype.kind not in "fu":
        return None
    batch, *rest = spec.shape
    for channels, sides in ((0, slice(1, 3)), (2, slice(0, 2))):
        if rest[channels] in CHANNELS and None in rest[sides]:
            usual = zip(rest[sides], (height, width), strict=True)
            rest[sides] = [each if side is None else side for side, each in usual]
            return replace(spec, shape=(batch, *rest))
    return None


def _sequence(spec: TensorSpec, length: int, *, last: bool) -> TensorSpec:
    if length == 1:
        return spec
    first = max(len(spec.shape) - 1, 1) if last else 1
    sides = (length if side is None and at >= first else side for at, side in enumerate(spec.shape))
    return replace(spec, shape=tuple(sides))


def shown(spec: TensorSpec) -> str:
    """`1x3x?x?`, a question mark for each side that is open."""
    return "x".join("?" if side is None else str(side) for side in spec.shape)
