"""The schema of one target entry: pydantic judges the values, the frozen `Target` is what leaves here."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from edgepack.model.scheme import FORMATS, Format
from edgepack.targets import Bandwidth, Cache, Cluster, Ipc, KnownBad, Problem, Source, Target, suggestion
from edgepack.targets_file import KeyPath, found_text

_SIZE = re.compile(r"(\d{1,12})([KMG])")
_UNIT = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_CACHES = ("L1d", "L1i", "L2", "L3", "system_cache")
_READS = ("read", "read_all_cores")


def _size(value: Any) -> Any:
    """Bytes of `32K`, `1M` or `8G`; anything else is left for pydantic to judge."""
    match = _SIZE.fullmatch(value) if isinstance(value, str) else None
    return int(match[1]) * _UNIT[match[2]] if match else value


Size = Annotated[int, BeforeValidator(_size), Field(gt=0, le=1 << 50)]
Count = Annotated[int, Field(gt=0, le=65536)]
Rate = Annotated[float, Field(gt=0, le=1e5, allow_inf_nan=False)]
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}$")]
Line = Annotated[str, StringConstraints(pattern=r"^[^\x00-\x1f\x7f-\x9f]{1,300}$")]
# A host goes to ssh as an argument: no leading dash (an option), no white space, no shell signs.
Host = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._@:%+\[\]-]{0,252}$")]
Runtime = Literal["onnxruntime", "ai-edge-litert", "tflite-runtime"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class _Cache(_Strict):
    size_bytes: Size
    shared: Literal["core", "cluster", "all"]
    ways: Count | None = None
    line_bytes: Literal[16, 32, 64, 128, 256] = 64
    source: Source = "reference"


class _Bandwidth(_Strict):
    low_gb_s: Rate
    high_gb_s: Rate
    source: Source = "reference"


class _Ipc(_Strict):
    low: Annotated[float, Field(gt=0, le=16, allow_inf_nan=False)]
    high: Annotated[float, Field(gt=0, le=16, allow_inf_nan=False)]
    source: Source = "estimate"


class _Cluster(_Strict):
    core: Word
    cores: Count
    frequency_mhz: Annotated[int, Field(gt=0, le=20000)] | None = None
    frequency_source: Source = "reference"
    ipc: _Ipc | None = None
    L1d: _Cache | None = None
    L1i: _Cache | None = None
    L2: _Cache | None = None
    L3: _Cache | None = None
    read: _Bandwidth | None = None
    read_all_cores: _Bandwidth | None = None


class _KnownBad(_Strict):
    runtime: Runtime
    version: Word
    reason: Line


class _Target(_Strict):
    description: Line
    arch: Literal["aarch64", "armv7l", "armv6l", "riscv64", "x86_64", "i686"]
    isa: list[Word]
    clusters: Annotated[dict[Word, _Cluster], Field(min_length=1, max_length=16)]
    ram_bytes: Size
    ram_max_bytes: Size | None = None
    system_cache: _Cache | None = None
    runtimes: dict[Format, Runtime]
    no_runtime_reason: Line | None = None
    known_bad: list[_KnownBad] = []
    hosts: list[Host] = []


def build_target(
    name: str, values: Mapping[str, Any], lines: Mapping[KeyPath, int]
) -> tuple[Target | None, list[Problem]]:
    """Validates the merged values of one target.

    Args:
        name: of the target.
        values: with `extends` already resolved and taken out.
        lines: line of every key that the entry itself holds, by path.

    Returns:
        The target, or None and every problem found.
    """
    try:
        model = _Target.model_validate(dict(values))
    except ValidationError as err:
        return None, [_problem(name, values, dict(error), lines) for error in err.errors(include_url=False)]
    problems = [
        Problem(message, name, ".".join(map(str, path)), _line(path, lines)) for path, message in _contradictions(model)
    ]
    return (None, problems) if problems else (_frozen(name, model), [])


def _contradictions(model: _Target) -> list[tuple[KeyPath, str]]:
    """Facts that are each well formed and cannot hold together."""
    found: list[tuple[KeyPath, str]] = []
    if model.ram_max_bytes is not None and model.ram_max_bytes < model.ram_bytes:
        found.append(
            (("ram_max_bytes",), f"found {model.ram_max_bytes}, expected at least ram_bytes {model.ram_bytes}")
        )
    if not model.runtimes and model.no_runtime_reason is None:
        found.append((("runtimes",), "no runtime is listed; expected no_runtime_reason to say why"))
    for name, cluster in model.clusters.items():
        for key in _READS:
            read: _Bandwidth | None = getattr(cluster, key)
            if read is not None and read.high_gb_s < read.low_gb_s:
                message = f"high_gb_s {read.high_gb_s:g} is below low_gb_s {read.low_gb_s:g}"
                found.append((("clusters", name, key), message))
        if cluster.ipc is not None and cluster.ipc.high < cluster.ipc.low:
            message = f"high {cluster.ipc.high:g} is below low {cluster.ipc.low:g}"
            found.append((("clusters", name, "ipc"), message))
    return found


def _frozen(name: str, model: _Target) -> Target:
    clusters = []
    for cluster_name, cluster in model.clusters.items():
        facts = cluster.model_dump()
        facts.update({key: Cache(**facts[key]) for key in _CACHES if facts.get(key)})
        facts.update({key: Bandwidth(**facts[key]) for key in _READS if facts.get(key)})
        if facts.get("ipc"):
            facts["ipc"] = Ipc(**facts["ipc"])
        clusters.append(Cluster(name=cluster_name, **facts))
    facts = model.model_dump(exclude={"clusters", "isa", "system_cache", "known_bad", "hosts"})
    return Target(
        name=name,
        clusters=tuple(clusters),
        isa=tuple(model.isa),
        system_cache=Cache(**model.system_cache.model_dump()) if model.system_cache else None,
        known_bad=tuple(KnownBad(**bad.model_dump()) for bad in model.known_bad),
        hosts=tuple(model.hosts),
        **facts,
    )


def _problem(name: str, values: Mapping[str, Any], error: dict[str, Any], lines: Mapping[KeyPath, int]) -> Problem:
    path: KeyPath = error["loc"]
    kind = error["type"]
    if path[-1] == "[key]":
        path = path[:-1]
        kind = "extra_forbidden" if path[0] == "runtimes" else kind
    if kind == "extra_forbidden":
        # A key that is given already cannot be the one that was meant.
        known = [key for key in _known_keys(path) if key not in _parent(values, path)]
        near = suggestion(str(path[-1]), known) or f"expected one of {', '.join(known)}"
        message = f'unknown key "{str(path[-1])[:64]}"; {near}'
    elif kind == "missing":
        message = "missing"
    else:
        expected = str(error["msg"]).replace("Input should be", "expected").replace("String should", "expected to")
        message = f"found {found_text(error['input'])}, {expected}"
    return Problem(message, name, ".".join(map(str, path)), _line(path, lines))


def _parent(values: Mapping[str, Any], path: KeyPath) -> Any:
    """The mapping in which `path` ends."""
    at: Any = values
    for part in path[:-1]:
        at = at[part]
    return at


def _known_keys(path: KeyPath) -> tuple[str, ...]:
    """The keys that the schema knows where `path` ends."""
    parent = path[-2] if len(path) > 1 else None
    model: type[BaseModel] = _Target
    if parent == "runtimes":
        return FORMATS
    if parent in _CACHES:
        model = _Cache
    elif parent in _READS:
        model = _Bandwidth
    elif parent == "ipc":
        model = _Ipc
    elif path[0] == "known_bad":
        model = _KnownBad
    elif path[0] == "clusters":
        model = _Cluster
    keys = tuple(model.model_fields)
    return (*keys, "extends") if model is _Target else keys


def _line(path: KeyPath, lines: Mapping[KeyPath, int]) -> int | None:
    """The line of a key, or of the nearest one above it that the entry itself holds."""
    for length in range(len(path), -1, -1):
        if path[:length] in lines:
            return lines[path[:length]]
    return None
