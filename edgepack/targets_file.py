"""Reads a targets file: YAML → entries with line numbers → `extends` resolved → validated `Target`s."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgepack.errors import TargetsError
from edgepack.targets import HOST, Problem, Target, suggestion
from edgepack.workspace import shipped

if TYPE_CHECKING:
    import yaml

MAX_BYTES = 256 << 10  # a targets file is a few KiB; anything near this is not one
MAX_DEPTH = 16
MAX_TARGETS = 1000
SCHEMA_VERSION = 1
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,63}")

KeyPath = tuple[str | int, ...]


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
        data = yaml.safe_load(text) if not problems else None
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
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as err:
        raise TargetsError(f"{path}: cannot read the targets file: {err.strerror}") from err
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
    from edgepack.targets_schema import build_target

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
