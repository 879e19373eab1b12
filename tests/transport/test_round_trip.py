"""Files through a container: the very bytes, whatever the tensors, and each tensor by its smallest codec."""

from __future__ import annotations

import numpy as np
import pytest
from containers import gaussian_codes, sample
from hypothesis import given
from hypothesis import strategies as st

from edgepack.errors import ModelError, UsageError
from edgepack.transport import mosaic, needs, packing
from edgepack.transport.packing import pack
from edgepack.transport.parts import Source, Span, apart, laid
from edgepack.transport.unpacking import unpack

spans = st.lists(
    st.builds(
        Span,
        st.text(max_size=5),
        st.integers(-5, 3000),
        st.sampled_from([4, 8, 16, 32, 64]),
        st.lists(st.integers(0, 40), max_size=3).map(tuple),
    ),
    max_size=6,
)
contents = st.binary(max_size=200) | st.builds(
    lambda seed, size, most: np.random.default_rng(seed).integers(0, most, size, np.uint8).tobytes(),
    st.integers(0, 99),
    st.integers(0, 4000),
    st.sampled_from([1, 4, 200]),
)


@given(contents, spans)
def test_any_bytes_with_any_spans(content: bytes, found: list[Span]) -> None:
    packed = pack([Source("f", content, found)])
    assert unpack(packed.content, "x") == {"f": content}
    assert sum(part.size_bytes for part in packed.parts["f"]) == len(content)
    assert sum(part.wire_bytes for part in packed.parts["f"]) < len(packed.content)


@given(contents, contents)
def test_several_files(one: bytes, other: bytes) -> None:
    packed = pack([Source("a.onnx", one), Source("b.tflite", other)])
    assert unpack(packed.content, "x") == {"a.onnx": one, "b.tflite": other}


def test_the_same_files_give_the_same_bytes() -> None:
    assert sample() == sample()


@given(spans, st.integers(0, 3000))
def test_spans_apart_do_not_overlap(found: list[Span], size: int) -> None:
    kept = apart(found, size)
    ends = [0, *(span.offset + span.size_bytes for span in kept)]
    assert all(span.offset >= end for span, end in zip(kept, ends, strict=False))
    assert ends[-1] <= size


def codec_of(data: np.ndarray, bits: int, shape: tuple[int, ...] | None = None) -> tuple[str, float]:
    """By which codec a tensor travels, and with how much of its size."""
    content = data.tobytes()
    (*parts, rest) = pack([Source("f", content, [Span("t", 0, bits, shape or data.shape)])]).parts["f"]
    wire = sum(part.wire_bytes for part in (*parts, rest))
    return (parts[0].codec if parts else rest.codec), wire / len(content)


def test_gaussian_int8_is_range_coded() -> None:
    codec, share = codec_of(gaussian_codes(64, 512), 8)
    assert codec == "bytes"
    assert 0.85 < share < 0.93


def test_smooth_rows_travel_as_differences() -> None:
    waves = 120 * np.sin(np.arange(512) / 40 + np.arange(64)[:, None] ** 2)
    codec, share = codec_of(np.rint(waves + np.random.default_rng(0).normal(size=waves.shape)).astype(np.int8), 8)
    assert codec == "delta"
    assert share < 0.5


def test_packed_nibbles_are_coded_as_nibbles() -> None:
    rng = np.random.default_rng(0)
    codes = np.clip(np.rint(rng.normal(size=(8, 256)) * 2.2), -7, 7).astype(np.int8) & 15
    codec, share = codec_of((codes[:, ::2] | codes[:, 1::2] << 4).astype(np.uint8), 4, (8, 256))
    assert codec == "nibbles"
    assert share < 0.86


def test_floats_travel_in_planes() -> None:
    codec, share = codec_of(np.random.default_rng(0).normal(size=(64, 512)).astype(np.float32), 32)
    assert codec == "planes"
    assert share < 0.88


def test_what_repeats_travels_once() -> None:
    codec, share = codec_of(np.tile(gaussian_codes(1, 500), (50, 1)), 8)
    assert codec == "zstd"
    assert share < 0.05


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("flip", [0, 128])
def test_codes_of_a_jpeg_travel_as_the_jpeg(transposed: bool, flip: int) -> None:
    data = mosaic.encode(gaussian_codes(40, 256), 40)
    codes = mosaic.decode(data, (40, 256))
    content = b"before" + laid(codes, transposed, flip) + b"after"
    span = Span("w", 6, 8, (256, 40) if transposed else (40, 256))
    packed = pack([Source("m", content, [span], [(codes, data)])])
    first = packed.parts["m"][0]
    assert (first.codec, first.wire_bytes) == ("jpeg", len(data))
    assert len(packed.content) < len(pack([Source("m", content, [span])]).content)
    assert unpack(packed.content, "x") == {"m": content}


def test_a_jpeg_of_other_codes_is_not_used() -> None:
    codes = gaussian_codes(40, 256)
    data = mosaic.encode(codes, 40)
    packed = pack([Source("m", codes.tobytes(), [Span("w", 0, 8, (40, 256))], [(codes, data)])])
    assert "jpeg" not in {part.codec for part in packed.parts["m"]}


def test_what_shrinks_suspiciously_is_stored() -> None:
    content = bytes(3 << 20)
    packed = pack([Source("f", content, [Span("t", 0, 8, (3, 1 << 20))])])
    assert [part.codec for part in packed.parts["f"]] == ["stored"]
    assert unpack(packed.content, "x") == {"f": content}


@pytest.mark.parametrize("name", ["", ".", "..", "a/b", "a\\b", "/etc/x", "c:x", ".hidden", "a\0b", "x" * 300])
def test_paths_are_not_packed(name: str) -> None:
    with pytest.raises(UsageError, match="no plain file name"):
        pack([Source(name, b"x")])


def test_more_than_a_container_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MAX_TOTAL_BYTES", 10)
    with pytest.raises(UsageError, match="more than 10 bytes"):
        pack([Source("a", b"123456"), Source("b", b"123456")])


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(name)

    content, container = sample()
    monkeypatch.setattr(needs, "import_module", missing)
    for call in (needs.need_all, lambda: unpack(container, "x"), lambda: pack([Source("f", content)])):
        with pytest.raises(UsageError, match="zstandard") as caught:
            call()
        assert caught.value.hint == "install it with: pip install 'edgepack[transport]'"
    assert not issubclass(UsageError, ModelError)
