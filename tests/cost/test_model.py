"""Which scheme is taken: the preferred one, unless another measured clearly faster."""

from __future__ import annotations

import pytest

from edgepack.backends.onnx.schemes import INT8_DYNAMIC, INT8_STATIC
from edgepack.backends.registry import FORMATS
from edgepack.backends.schemes import DENSE_INT8, SCHEMES
from edgepack.cost.model import CLEARLY, ROUNDS, fastest, interleaved_s, ordered, preferred


def test_static_schemes_need_calibration() -> None:
    assert preferred("onnx", calibrated=True) == (INT8_DYNAMIC, INT8_STATIC)
    for fmt in FORMATS:
        schemes = preferred(fmt, calibrated=False)
        assert len(schemes) == 1
        assert not schemes[0].is_static
        assert "static" not in schemes[0].name


def test_every_preferred_scheme_is_a_scheme() -> None:
    assert set(DENSE_INT8) == set(FORMATS)
    for fmt, schemes in DENSE_INT8.items():
        assert set(schemes) <= set(SCHEMES[fmt])
        assert all(scheme.per_channel_int8 for scheme in schemes)


@pytest.mark.parametrize(
    ("latency", "expected"),
    [
        ({}, "a"),
        ({"a": 1.0, "b": 0.95, "c": 2.0}, "a"),
        ({"a": 1.0, "b": 0.89, "c": 2.0}, "b"),
        ({"a": 1.0, "b": 0.89, "c": 0.85}, "b"),
        ({"a": 1.0, "b": 0.89, "c": 0.5}, "c"),
        ({"a": 1.0, "b": CLEARLY, "c": 1.0}, "a"),
    ],
)
def test_fastest(latency: dict[str, float], expected: str) -> None:
    assert fastest(["a", "b", "c"], latency) == expected


def test_latency_is_per_call_and_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a clock that only the runs move, so that no other load of the machine shows."""
    turns: list[str] = []
    now = 0.0

    def runner(name: str, seconds: float):
        def run() -> None:
            nonlocal now
            if not turns or turns[-1] != name:
                turns.append(name)
            now += seconds

        return run

    monkeypatch.setattr("edgepack.cost.model.time.perf_counter", lambda: now)
    runs = [("slow", runner("first", 6e-3)), ("quick", runner("second", 2e-3)), ("slow", runner("third", 8e-3))]
    found = interleaved_s(runs)
    assert found == {"slow": pytest.approx([7e-3] * ROUNDS), "quick": pytest.approx([2e-3] * ROUNDS)}
    there_and_back = ["first", "second", "third", "second"]
    assert turns[3:] == (there_and_back * ROUNDS)[: 2 * ROUNDS + 1]


def test_a_scheme_goes_first_only_where_it_is_clearly_faster() -> None:
    assert ordered({"a": 1.0, "b": 0.95, "c": 0.2}) == ("c", "a", "b")
    assert ordered({"a": 1.0, "b": 0.5}) == ("b", "a")
    assert ordered({}) == ()
