"""A wrong input: one command line, and what it is wrong in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Case:
    """A command that cannot be carried out as it stands.

    Attributes:
        family: what is wrong: `onnx`, `arguments`, …
        name: of the case within its family.
        arguments: behind `edgepack`; `{out}` becomes a folder of the case's own.
        shell: redirections, for cases that run in a shell of their own: `>&-`, `| head -c 1`.
        environment: set beside that of this process.
    """

    family: str
    name: str
    arguments: Sequence[str]
    shell: str | None = None
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """What a command came to.

    Attributes:
        case: which.
        code: exit code; minus the signal's number where one ended it; None where it had to be ended.
        seconds: wall time.
        peak_bytes: most that its process held: VmHWM, with what this one had loaded before.
        said: the end of what it wrote to stderr and stdout.
    """

    case: Case
    code: int | None
    seconds: float
    peak_bytes: int
    said: str
