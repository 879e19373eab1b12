"""Targets files: YAML → entries with line numbers → `extends` resolved → validated `Target`s."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError

from edgepack.backends.registry import FORMATS, KnownFormat, KnownRuntime
from edgepack.errors import TargetsError, UsageError
from edgepack.targets.target import HOST, Bandwidth, Cache, Cluster, Ipc, KnownBad, Problem, Source, Target, suggestion
from edgepack.validation import read_bounded
from edgepack.workspace import shipped

if TYPE_CHECKING:
    import yaml

MAX_BYTES = 256 << 10  # a targets file is a few KiB; anything near this is not one
MAX_DEPTH = 16
MAX_TARGETS = 1000
SCHEMA_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")

KeyPath = tuple[str | int, ...]

_SIZE = re.compile(r"(\d{1,12})([KMG])")
_UNIT = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_CACHES = ("L1d", "L1i", "L2", "L3", "system_cache")
_READS = ("read", "read_all_cores")


@dataclass(frozen=True)
class Entry:
    """One target as written: raw values, and the line of every key below it."""

    values: Mapping[str, Any]
    lines: Mapping[KeyPath, int]
    shipped: bool = False


def read_entries(path: Path) -> tuple[dict[str, Entry], list[Problem]]:
    """Entries of one file by name, or the problems that keep it from being read.

    Raises:
        TargetsError: the file cannot be opened.
    """
    import yaml

    text = _read_text(path)
    try:
        problem = _refused(text)
        if problem is not None:
            return {}, [problem]
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        lines: dict[KeyPath, int] = {}
        problems = list(_walk(root, (), lines)) if root is not None else []
        data = yaml.SafeLoader("").construct_document(root) if root is not None and not problems else None
    except yaml.MarkedYAMLError as err:
        mark = err.problem_mark or err.context_mark
        return {}, [_at(mark, f"not YAML: {err.problem or err.context}")]
    except (yaml.YAMLError, ValueError) as err:  # ValueError: an impossible date or number
        return {}, [Problem(f"not YAML: {' '.join(str(err).split())}")]
    if problems:
        return {}, problems
    return _entries(data, lines)


def _read_text(path: Path) -> str:
    try:
        raw = read_bounded(path, MAX_BYTES)
    except OSError as err:
        raise TargetsError(f"{path}: cannot read the targets file: {err.strerror}", hint="check its path") from err
    if len(raw) > MAX_BYTES:
        raise TargetsError(f"{path}: the targets file is over {MAX_BYTES >> 10} KiB; expected a few KiB")
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as err:
        raise TargetsError(f"{path}: the targets file is not UTF-8 text (byte {err.start})") from err


def _refused(text: str) -> Problem | None:
    """What YAML allows and a targets file does not: aliases, which can grow without bound, and deep nesting.

    Events come one by one, so that a hostile file is left at its first offence.
    """
    import yaml

    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.AliasEvent):
            return _at(event.start_mark, f"YAML alias *{event.anchor} is not allowed here; use `extends`")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > MAX_DEPTH:
            return _at(event.start_mark, f"nested over {MAX_DEPTH} deep; a targets file needs 7 levels")
    return None


def _at(mark: Any, message: str) -> Problem:
    return Problem(message, line=mark.line + 1 if mark is not None else None)


def _walk(node: yaml.Node, path: KeyPath, lines: dict[KeyPath, int]) -> Iterator[Problem]:
    """Notes the line of every key and yields duplicate and non-text keys."""
    import yaml

    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            lines[(*path, index)] = item.start_mark.line + 1
            yield from _walk(item, (*path, index), lines)
    elif isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag != "tag:yaml.org,2002:str":
                yield _at(key.start_mark, "a key must be plain text")
                continue
            here = (*path, key.value)
            if here in lines:
                yield _at(key.start_mark, f'"{key.value}" is given twice; it stands on line {lines[here]} already')
            lines[here] = key.start_mark.line + 1
            yield from _walk(value, here, lines)


def _entries(data: Any, lines: Mapping[KeyPath, int]) -> tuple[dict[str, Entry], list[Problem]]:
    if not isinstance(data, dict):
        return {}, [Problem(f"expected the keys schema_version and targets, found {found_text(data)}")]
    known = ("schema_version", "targets")
    problems = [
        Problem(
            f'unknown key "{key}"; {suggestion(key, known) or "expected schema_version, targets"}',
            line=lines.get((key,)),
        )
        for key in data
        if key not in known
    ]
    version = data.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        what = "schema_version is missing" if version is None else f"schema_version is {found_text(version)}"
        problems.append(Problem(f"{what}; expected {SCHEMA_VERSION}", line=lines.get(("schema_version",))))
    targets = data.get("targets")
    if not isinstance(targets, dict):
        problems.append(Problem(f"targets: expected a mapping of names, found {found_text(targets)}"))
        return {}, problems
    if len(targets) > MAX_TARGETS:
        return {}, [Problem(f"{len(targets)} targets; expected at most {MAX_TARGETS}")]
    entries: dict[str, Entry] = {}
    for name, values in targets.items():
        own_lines = {path[2:]: line for path, line in lines.items() if path[:2] == ("targets", name)}
        problem = _name_problem(name, values)
        if problem:
            problems.append(Problem(problem, target=name[:64], line=own_lines.get(())))
        else:
            entries[name] = Entry(values, own_lines)
    return entries, problems


def _name_problem(name: str, values: Any) -> str | None:
    if name == HOST:
        return '"host" is probed on the machine and cannot be listed'
    if not _NAME.fullmatch(name):
        return "a target name is letters, digits and . + _ -, at most 64"
    if not isinstance(values, dict):
        return f"expected a mapping of facts, found {found_text(values)}"
    return None


@cache
def shipped_entries() -> Mapping[str, Entry]:
    """The entries of the shipped file.

    Raises:
        TargetsError: the shipped file is damaged.
    """
    path = shipped("targets.yaml")
    entries, problems = read_entries(path)
    if problems:
        raise TargetsError(f"{path}: {problems[0]}", hint="reinstall edgepack: its own targets.yaml is damaged")
    return {name: Entry(entry.values, entry.lines, shipped=True) for name, entry in entries.items()}


def merge(base: Mapping[str, Entry], own: Mapping[str, Entry]) -> tuple[dict[str, Target], list[Problem]]:
    """Resolves `extends` over both files and validates every target.

    An own entry that names no `extends` and whose name is in `base` changes only the keys it lists.
    """

    targets: dict[str, Target] = {}
    problems: list[Problem] = []
    for name in {**base, **own}:
        entry = own.get(name) or base[name]
        values, problem = _resolve(name, base, own)
        if problem is not None:
            problems.append(problem)
            continue
        target, found = build_target(name, values, entry.lines)
        problems.extend(found)
        if target is not None:
            targets[name] = target
    return targets, sorted(problems, key=lambda problem: problem.line or 0)


def _resolve(name: str, base: Mapping[str, Entry], own: Mapping[str, Entry]) -> tuple[dict[str, Any], Problem | None]:
    """The values of a target with all that it extends merged below it."""
    chain: list[Mapping[str, Any]] = []
    seen: set[tuple[str, bool]] = set()
    at, in_own = name, name in own
    while True:
        entry = own[at] if in_own else base[at]
        if (at, in_own) in seen:
            return {}, Problem(f'extends runs in a circle at "{at}"', name, "extends", entry.lines.get(("extends",)))
        seen.add((at, in_own))
        chain.append(entry.values)
        parent = entry.values.get("extends")
        if parent is None:
            if not in_own or at not in base:
                break
            in_own = False  # a partial entry stands on the shipped one of the same name
            continue
        if not isinstance(parent, str) or (parent not in own and parent not in base):
            near = suggestion(str(parent), {**base, **own})
            return {}, Problem(
                f"extends {found_text(parent)}, which is no target; {near}".rstrip("; "),
                name,
                "extends",
                entry.lines.get(("extends",)),
            )
        # A shipped entry extends shipped ones only; `extends: rpi4` inside an own rpi4 means the shipped one.
        in_own = in_own and parent in own and not (parent == at and parent in base)
        at = parent
    merged: dict[str, Any] = {}
    for values in reversed(chain):
        merged = _deep_merge(merged, values)
    merged.pop("extends", None)
    return merged, None


def _deep_merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _deep_merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def found_text(value: Any) -> str:
    """A value as an error message shows it: short, and never the inside of a container."""
    if value is None:
        return "nothing"
    text = repr(value) if isinstance(value, (str, int, float, bool)) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


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
    runtime: KnownRuntime
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
    runtimes: dict[KnownFormat, KnownRuntime]
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


def load_targets(path: Path | None = None) -> dict[str, Target]:
    """Every target by name: the shipped ones, a user's file merged over them, and `host` probed live.

    Args:
        path: the user's file; by default `targets.yaml` of the working folder where there is one.

    Raises:
        TargetsError: a file is missing, malformed or holds an unknown key; the first problem with its line.
    """
    from edgepack.targets.probe import probe_host

    return {**_listed_targets(path), HOST: probe_host()}


def get_target(name: str, path: Path | None = None) -> Target:
    """One target by name.

    Args:
        name: as in `targets.yaml`, or `host`.
        path: the user's file; see `load_targets`.

    Raises:
        TargetsError: no such target, or a bad file.
    """
    from edgepack.targets.probe import probe_host

    listed = _listed_targets(path)
    if name == HOST:
        return probe_host()
    if name in listed:
        return listed[name]
    names = [*listed, HOST]
    near = suggestion(name, names)
    raise TargetsError(
        f'unknown target "{name}"' + (f": {near}" if near else ""),
        hint=f"known targets: {', '.join(names)}",
    )


def get_targets(names: str, path: Path | None = None) -> list[Target]:
    """Targets by their names with commas between them: `rpi4,rpi5`.

    Raises:
        UsageError: one is named twice.
        TargetsError: see `get_target`.
    """
    listed = [name.strip() for name in names.split(",")]
    twice = next((name for name in listed if listed.count(name) > 1), None)
    if twice is not None:
        raise UsageError(f"--target {names}: {twice} is named twice", hint="a target has one pack")
    return [get_target(name, path) for name in listed]


def check_file(path: Path) -> list[Problem]:
    """All that is wrong with a user's targets file, in the order of its lines; an empty list means it is good.

    Raises:
        TargetsError: the file cannot be read at all.
    """

    entries, problems = read_entries(path)
    if problems:
        return problems
    return merge(shipped_entries(), entries)[1]


def _listed_targets(path: Path | None) -> dict[str, Target]:
    own = path
    if own is None and Path("targets.yaml").is_file():
        own = Path("targets.yaml")
    entries, problems = read_entries(own) if own is not None else ({}, [])
    if not problems:
        targets, problems = merge(shipped_entries(), entries)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise TargetsError(f"{own}: {problems[0]}{more}", hint=f"see all problems with: edgepack targets check {own}")
    return targets
