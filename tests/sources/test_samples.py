"""Samples in folders and from functions: what they become, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgepack.data import Ragged, Samples, feeds, split
from edgepack.errors import DataError, InputError, UsageError
from edgepack.model.types import Array, TensorSpec
from edgepack.sources import samples
from edgepack.sources.images import ImageOptions, parse_images
from edgepack.sources.samples import read_samples


def spec(name: str = "x", shape: tuple[int | None, ...] = (1, 3), dtype: str = "float32") -> TensorSpec:
    return TensorSpec(name, shape, np.dtype(dtype))


X = (spec(),)
TWO = (spec("x"), spec("ids", (None, 2), "int64"))
ROWS = np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32)
RED, GREEN, GREY = (200, 10, 20), (10, 220, 30), (90, 90, 90)


def folder(tmp_path: Path, rows: Array = ROWS) -> Path:
    made = tmp_path / "rows"
    made.mkdir()
    for number, row in enumerate(rows):
        np.save(made / f"{number:03}.npy", row)
    return made


def picture(path: Path, colour: tuple[int, int, int], size: tuple[int, int] = (8, 6)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)


def test_a_folder_of_arrays_with_or_without_their_own_axis(tmp_path: Path) -> None:
    made = folder(tmp_path)
    np.save(made / "003.npy", ROWS[3:4])
    np.testing.assert_array_equal(read_samples(made, X).inputs["x"], ROWS)


def test_a_folder_of_several_arrays_a_sample(tmp_path: Path) -> None:
    for number, row in enumerate(ROWS):
        np.savez(tmp_path / f"{number}.npz", x=row.astype(np.float64), ids=[number, 1], y=number % 2)
    (tmp_path / ".hidden").touch()
    found = read_samples(tmp_path, TWO)
    np.testing.assert_allclose(found.inputs["x"], ROWS)
    assert found.inputs["ids"].dtype == np.int64
    assert found.inputs["ids"][:, 0].tolist() == list(range(6))
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 0, 1, 0, 1]


@pytest.mark.parametrize(("names", "numbers"), [(("cat", "dog"), [0, 0, 1, 1]), (("7", "12"), [12, 12, 7, 7])])
def test_classes_are_numbered_by_their_folders(tmp_path: Path, names: tuple[str, str], numbers: list[int]) -> None:
    for number, row in enumerate(ROWS[:4]):
        place = tmp_path / names[number // 2]
        place.mkdir(exist_ok=True)
        np.save(place / f"{number}.npy", row)
    found = read_samples(tmp_path, X)
    assert found.labels is not None
    assert found.labels.tolist() == numbers


def test_a_function_yields_them(tmp_path: Path) -> None:
    (tmp_path / "helper.py").write_text("count = 4\n")
    path = tmp_path / "mine.py"
    path.write_text(
        "def rows():\n    import helper\n    for n in range(helper.count):\n        yield {'x': [n, 1., 2.], 'y': n}\n"
        "def broken():\n    yield {'x': [1., 2., 3.]}\n    raise KeyError('speaker')\n"
        "def other():\n    yield [1., 2., 3.]\n"
        "def none():\n    yield from ()\n"
    )
    found = read_samples(Path(f"{path}:rows"), X)
    assert found.inputs["x"][:, 0].tolist() == [0, 1, 2, 3]
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1, 2, 3]
    for function, says in {
        "broken": r"KeyError at .*mine\.py:7",
        "other": "sample 0 is list, a dict was expected",
        "none": "no samples",
        "absent": "defines no function 'absent'",
    }.items():
        with pytest.raises(InputError, match=says) as caught:
            read_samples(Path(f"{path}:{function}"), X)
        assert caught.value.hint


def test_a_function_that_yields_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "mine.py"
    path.write_text("import itertools\ndef rows():\n    yield from ({'x': [n, 1., 2.]} for n in itertools.count())\n")
    monkeypatch.setattr(samples, "MOST_YIELDED", 100)
    with pytest.raises(DataError, match=r"mine\.py:rows: it yields more than 100 samples"):
        read_samples(Path(f"{path}:rows"), X)


def test_they_lie_in_files_and_so_do_their_parts(tmp_path: Path) -> None:
    found = read_samples(folder(tmp_path, np.arange(600, dtype=np.float32).reshape(200, 3)), X)
    assert isinstance(found.inputs["x"], np.memmap)
    parts = split(found, 0, 60)
    held = [part for part in (parts.calibration, parts.validation, parts.confirmation) if part is not None]
    assert all(isinstance(part.inputs["x"], np.memmap) for part in held)
    rows = np.concatenate([part.inputs["x"] for part in held])
    np.testing.assert_array_equal(rows[np.argsort(rows[:, 0])], found.inputs["x"])
    whole = split(Samples({"x": np.array(found.inputs["x"])}), 0, 60)
    np.testing.assert_array_equal(parts.validation.inputs["x"], whole.validation.inputs["x"])


@pytest.mark.parametrize("shape", [(1, 3, 4, 5), (None, None, 4, 5), (1, 4, 5, 3)])
def test_images_become_what_the_model_takes(tmp_path: Path, shape: tuple[int | None, ...]) -> None:
    picture(tmp_path / "a" / "red.png", RED)
    picture(tmp_path / "b" / "green.jpg", GREEN, (5, 4))
    options = ImageOptions(None, (0.5, 0.4, 0.3), (0.5, 0.25, 0.2), None if shape[1] is not None else "nchw")
    found = read_samples(tmp_path, (spec("image", shape),), options)
    assert found.inputs["image"].shape == (2, *(3 if side is None else side for side in shape[1:]))
    assert found.labels is not None
    assert found.labels.tolist() == [0, 1]
    first = found.inputs["image"][0]
    pixel = first[0, 0] if shape[3] == 3 else first[:, 0, 0]
    np.testing.assert_allclose(pixel, (np.array(RED) / 255 - (0.5, 0.4, 0.3)) / (0.5, 0.25, 0.2), rtol=1e-5)


def test_images_for_grey_and_for_whole_numbers(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", GREY)
    picture(tmp_path / "b.png", (10, 10, 10))
    grey = read_samples(tmp_path, (spec("image", (1, 1, None, None)),), ImageOptions((2, 3)))
    assert grey.inputs["image"].shape == (2, 1, 2, 3)
    np.testing.assert_allclose(grey.inputs["image"][0], 90 / 255, rtol=1e-5)
    whole = read_samples(tmp_path, (spec("image", (1, 2, 3, 3), "uint8"),))
    assert (whole.inputs["image"][0] == 90).all()


def a_text(where: Path) -> None:
    picture(where / "a.png", RED)
    (where / "labels.txt").write_text("a 1\n")


def no_image(where: Path) -> None:
    picture(where / "a.png", RED)
    (where / "b.png").write_text("no image\n" * 20)


def mixed(where: Path) -> None:
    picture(where / "a.png", RED)
    np.save(where / "b.npy", ROWS[0])


def beside(where: Path) -> None:
    picture(where / "cat" / "a.png", RED)
    picture(where / "b.png", RED)


def deep(where: Path) -> None:
    picture(where / "cat" / "big" / "a.png", RED)


def alike(where: Path) -> None:
    picture(where / "a.png", RED)
    picture(where / "b.png", RED)


IMAGE = (spec("image", (1, 3, 4, 5)),)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (a_text, r"labels\.txt: no image"),
        (no_image, r"b\.png: no image that can be read"),
        (mixed, r"b\.npy: no image, \.npz or \.npy, or not what the files before it are"),
        (beside, "it holds b.png beside folders such as cat"),
        (deep, "big: no image"),
        (alike, "all 2 samples are identical"),
        (lambda where: None, "the folder holds no files"),
    ],
)
def test_folders_that_are_no_samples(make: Callable[[Path], None], says: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=says) as caught:
        read_samples(tmp_path, IMAGE) if make(tmp_path) is None else None
    assert caught.value.hint
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (np.ones((2, 3), np.float32), r"001\.npy: 'x' has shape \(1, 2, 3\), expected"),
        (np.ones(4, np.float32), r"001\.npy: 'x' has shape \(1, 4\), expected \(N, 3\)"),
        (np.array([1, np.nan, 2], np.float32), r"001\.npy: 'x' holds NaN"),
        (np.array([{}, 1, 2], object), r"001\.npy: not a numeric \.npy array"),
        (np.array(["a", "b", "c"]), r"001\.npy: 'x' has dtype <U1"),
    ],
)
def test_samples_that_do_not_fit(second: Array, says: str, tmp_path: Path) -> None:
    made = folder(tmp_path, ROWS[:2])
    np.save(made / "001.npy", second, allow_pickle=True)
    with pytest.raises(DataError, match=says):
        read_samples(made, X)


LENGTHS = (4, 6, 4, 1)


def of_lengths(where: Path, lengths: Sequence[int] = LENGTHS) -> list[Array]:
    """Samples (length, 2), one a file."""
    rows = [
        np.random.default_rng(number).standard_normal((n, 2)).astype(np.float32) for number, n in enumerate(lengths)
    ]
    where.mkdir(exist_ok=True)
    for number, row in enumerate(rows):
        np.save(where / f"{number}.npy", row)
    return rows


@pytest.mark.parametrize("batch", [None, 1])
def test_lengths_that_the_model_leaves_open_may_differ(batch: int | None, tmp_path: Path) -> None:
    rows, open_spec = of_lengths(tmp_path / "d"), spec(shape=(batch, None, 2))
    samples = read_samples(tmp_path / "d", [open_spec])
    assert samples.ragged
    assert len(samples) == len(rows)
    for taken in (samples, samples.take(np.array([3, 1])), samples.take(np.array([1, 2])).take(np.array([0]))):
        fed = [(feed["x"], valid) for feed, valid in feeds(taken, [open_spec])]
        assert all(valid == 1 and x.shape[0] == 1 for x, valid in fed)
    for number, (feed, _) in enumerate(feeds(samples.take(np.array([3, 0, 1])), [open_spec])):
        np.testing.assert_array_equal(feed["x"][0], rows[(3, 0, 1)[number]])
    first = samples.inputs["x"]
    assert isinstance(first, Ragged)
    assert isinstance(first.take(np.array([1])).values, np.memmap)  # as large as they are, they stay on disk


def test_an_input_without_a_batch_takes_whole_samples(tmp_path: Path) -> None:
    rows = of_lengths(tmp_path / "d", (4, 6, 2))
    runs = [
        feed["x"] for feed, _ in feeds(read_samples(tmp_path / "d", [spec(shape=(None, 2))]), [spec(shape=(None, 2))])
    ]
    for run, row in zip(runs, rows, strict=True):
        np.testing.assert_array_equal(run, row)


def test_samples_of_one_length_are_one_array(tmp_path: Path) -> None:
    of_lengths(tmp_path / "d", (3, 3))
    assert not read_samples(tmp_path / "d", [spec(shape=(None, None, 2))]).ragged


@pytest.mark.parametrize(
    ("shape", "says"),
    [
        ((4, None, 2), "the model takes 4 of them at once"),
        ((None, 4, 2), r"1\.npy: 'x' has shape \(1, 6, 2\), expected"),
    ],
)
def test_lengths_that_a_model_cannot_take(shape: tuple[int | None, ...], says: str, tmp_path: Path) -> None:
    of_lengths(tmp_path / "d")
    with pytest.raises(DataError, match=says):
        read_samples(tmp_path / "d", [spec(shape=shape)])


def test_labels_that_only_some_have(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=ROWS[0], y=1)
    np.savez(tmp_path / "b.npz", x=ROWS[1])
    with pytest.raises(DataError, match="some samples have a label"):
        read_samples(tmp_path, X)


@pytest.mark.parametrize(
    ("shape", "options", "says"),
    [
        ((1, 10), ImageOptions(), "takes 1x10, which is no image"),
        ((1, 3, None, None), ImageOptions(), "leaves its sides open: 1x3x.x.$"),
        ((1, 3, 8, 8), ImageOptions((9, 9)), "--image-size 9x9: the model takes 8x8"),
        ((1, 7, 8, 8), ImageOptions(layout="nchw"), "no image has 7 channels"),
        ((1, 1, 8, 8), ImageOptions(mean=(0.1, 0.2, 0.3)), "--mean: 3 numbers, the model's images have 1 channels"),
    ],
)
def test_options_that_do_not_fit(
    shape: tuple[int | None, ...], options: ImageOptions, says: str, tmp_path: Path
) -> None:
    picture(tmp_path / "a.png", RED)
    with pytest.raises(UsageError, match=says):
        read_samples(tmp_path, (spec("image", shape),), options)


def test_options_are_for_images_alone(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no folder of images"):
        read_samples(folder(tmp_path), X, ImageOptions())


def test_options_as_they_are_written() -> None:
    assert parse_images(None, None, None, None) is None
    assert parse_images("240x320", "0.5", "0.1,0.2,0.3", "nhwc") == ImageOptions(
        (240, 320), (0.5,), (0.1, 0.2, 0.3), "nhwc"
    )
    assert parse_images("8", None, None, None) == ImageOptions((8, 8))
    for given in (("8x", None, None, None), ("0", None, None, None), ("1x2x3", None, None, None)):
        with pytest.raises(UsageError, match="--image-size"):
            parse_images(*given)
    for option, given_ in {
        "--mean": (None, "a", None, None),
        "--std": (None, None, "0", None),
        "--layout": (None, None, None, "hwc"),
    }.items():
        with pytest.raises(UsageError, match=option):
            parse_images(*given_)
