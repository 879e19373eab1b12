"""The JSON file of a result: written atomically, read as if a stranger had sent it."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from edgepack.bench.emulated_results import EmulatedResult
from edgepack.bench.results import BenchResult
from edgepack.bench.results_check import problems
from edgepack.errors import PackError

if TYPE_CHECKING:
    from pydantic import TypeAdapter

MAX_BYTES = 64 << 20
_AGAIN = "run the bench again"


def save_result(result: BenchResult | EmulatedResult, path: Path) -> None:
    """Writes a result; the file is whole or not there.

    Raises:
        PackError: the folder cannot be written.
    """
    text = json.dumps(asdict(result), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(text + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            os.unlink(temporary)
            raise
    except OSError as err:
        raise PackError(
            f"cannot write the results to {path}: {err.strerror}", hint="check the folder's rights and free space"
        ) from err


def load_result(path: Path) -> BenchResult:
    """Reads a measured result.

    Raises:
        PackError: missing, over 64 MiB, not JSON, another schema or kind, or with values that cannot be.
    """
    result = _load(path)
    if isinstance(result, EmulatedResult):
        raise PackError(f"{path}: an emulated result; expected a measured one")
    return result


def load_results(pack_dir: Path) -> list[BenchResult]:
    """The measured results of a pack in the order of their file names; a pack that was never benched has none.

    Raises:
        PackError: one of its results, of either kind, cannot be used.
    """
    return [result for result in _load_all(pack_dir) if isinstance(result, BenchResult)]


def load_emulated(pack_dir: Path) -> list[EmulatedResult]:
    """The emulated results of a pack in the order of their file names.

    Raises:
        PackError: one of its results, of either kind, cannot be used.
    """
    return [result for result in _load_all(pack_dir) if isinstance(result, EmulatedResult)]


def _load_all(pack_dir: Path) -> list[BenchResult | EmulatedResult]:
    return [_load(path) for path in sorted((pack_dir / "results").glob("*.json"))]


def _load(path: Path) -> BenchResult | EmulatedResult:
    from pydantic import ValidationError

    raw = _read(path)
    try:
        result = _schema().validate_json(raw)
    except ValidationError as err:
        first = err.errors(include_url=False, include_input=False)[0]
        where, what = ".".join(map(str, first["loc"][1:])) or "the file", first["msg"]
        if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
            where, what = "kind", "Input should be 'edgepack-bench' or 'edgepack-emulated'"
        raise PackError(f"{path}: not a result of this edgepack: {where}: {what}", hint=_AGAIN) from err
    problem = next(problems(result), None)
    if problem is not None:
        raise PackError(f"{path}: {problem}", hint=f"the file is damaged: {_AGAIN}")
    return result


@cache
def _schema() -> TypeAdapter[BenchResult | EmulatedResult]:
    from pydantic import Field, TypeAdapter

    either: Any = Annotated[BenchResult | EmulatedResult, Field(discriminator="kind")]
    return TypeAdapter(either)


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as err:
        raise PackError(f"{path}: cannot read the results: {err.strerror}") from err
    if len(raw) > MAX_BYTES:
        raise PackError(f"{path}: results over {MAX_BYTES >> 20} MiB; a session writes a few")
    return raw
