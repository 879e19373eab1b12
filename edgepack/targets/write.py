"""A `Target` as the text of a targets file, laid out like the shipped one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from typing import Any

from edgepack.targets.file import SCHEMA_VERSION
from edgepack.targets.target import Bandwidth, Cache, Cluster, Ipc, Target

_UNITS = ((30, "G"), (20, "M"), (10, "K"))
_WIDE = 1 << 20  # no line is broken: a flow mapping stays on its own line


def targets_file_text(target: Target, comments: Sequence[str] = ()) -> str:
    """A whole targets file with this one entry; `load_targets` reads the same target back from it.

    Args:
        target: not `host`, which cannot be listed.
        comments: lines above the entry, without the `#`.
    """
    lines = [f"schema_version: {SCHEMA_VERSION}", "", "targets:"]
    lines += [f"  # {''.join(sign for sign in comment if sign.isprintable())}".rstrip() for comment in comments]
    lines += [f"  {_scalar(target.name)}:", *(f"    {line}" for line in _target_lines(target))]
    return "\n".join(lines) + "\n"


def size_text(size_bytes: int) -> str:
    """`32K`, `1M`, `8G` where that is exact, else the number of bytes."""
    for shift, unit in _UNITS:
        if size_bytes >= 1 << shift and size_bytes % (1 << shift) == 0:
            return f"{size_bytes >> shift}{unit}"
    return str(size_bytes)


def _target_lines(target: Target) -> Iterator[str]:
    yield f"description: {_scalar(target.description)}"
    yield f"arch: {target.arch}"
    yield f"isa: {_flow(list(target.isa))}"
    yield "clusters:"
    for cluster in target.clusters:
        yield f"  {_scalar(cluster.name)}:"
        yield from (f"    {line}" for line in _cluster_lines(cluster))
    if target.system_cache is not None:
        yield f"system_cache: {_flow(_facts(target.system_cache))}"
    yield f"ram_bytes: {size_text(target.ram_bytes)}"
    if target.ram_max_bytes is not None:
        yield f"ram_max_bytes: {size_text(target.ram_max_bytes)}"
    yield f"runtimes: {_flow(target.runtimes)}"
    if target.no_runtime_reason is not None:
        yield f"no_runtime_reason: {_scalar(target.no_runtime_reason)}"
    if target.known_bad:
        yield "known_bad:"
        yield from (f"  - {_flow(_facts(bad))}" for bad in target.known_bad)
    if target.hosts:
        yield f"hosts: {_flow(list(target.hosts))}"


def _cluster_lines(cluster: Cluster) -> Iterator[str]:
    for field in fields(Cluster):
        value = getattr(cluster, field.name)
        if field.name == "name" or value is None or (field.name == "frequency_source" and value == "reference"):
            continue
        yield f"{field.name}: {_flow(_facts(value)) if isinstance(value, Cache | Bandwidth | Ipc) else _scalar(value)}"


def _facts(value: Any) -> dict[str, Any]:
    """The fields of a small dataclass that are not what the file's reader assumes."""
    return {
        field.name: getattr(value, field.name)
        for field in fields(value)
        if getattr(value, field.name) != field.default  # a field without a default is always written
    }


def _flow(value: Mapping[Any, Any] | Sequence[Any]) -> str:
    """`{size_bytes: 32K, shared: core}` or `[neon, dotprod]`."""
    if isinstance(value, Mapping):
        pairs = (f"{key}: {size_text(one) if key == 'size_bytes' else _in_flow(one)}" for key, one in value.items())
        return "{" + ", ".join(pairs) + "}"
    return "[" + ", ".join(map(_in_flow, value)) + "]"


def _in_flow(value: Any) -> str:
    """A scalar between brackets, where a comma or a bracket of its own would end it."""
    import yaml

    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return yaml.safe_dump([value], default_flow_style=True, allow_unicode=True, width=_WIDE).rstrip("\n")[1:-1]


def _scalar(value: Any) -> str:
    """A scalar on a line of its own or as a key, quoted where YAML would read something else."""
    import yaml

    return yaml.safe_dump({"k": value}, allow_unicode=True, width=_WIDE)[3:].rstrip("\n")
