"""Every error that edgepack raises on purpose.

    EdgepackError                 1  (never raised bare)
    ├── UsageError                2  a command, flag or argument that makes no sense
    │   └── OutputError              the output folder exists, is read-only, or its disk is full
    ├── InputError                3  a file from outside is bad
    │   ├── ModelError               model or recipe
    │   ├── DataError                calibration, validation or test data
    │   ├── TargetsError             targets.yaml
    │   └── PackError                a pack folder or its results
    ├── DeviceError               4  a device was unreachable or failed
    │   ├── TransientDeviceError     worth another try
    │   │   └── LinkError               the wire broke; what runs on the device goes on
    │   └── StableDeviceError        will fail again the same way
    ├── BudgetError               5  no plan meets the budget; the best attempt is written
    ├── RegressionError           6  a pack is worse than its base by more than a threshold
    └── ProofError                1  an emitted file failed one of its proofs: a defect of edgepack

The number is the exit code of the command line. A message names the thing, what was found and what was
expected; `hint` says what to do next.
"""

from __future__ import annotations

from collections.abc import Mapping

SOURCE = "(. is edgepack's checkout, or its wheel)"
"""What stands behind the command in a hint: edgepack is in no package index."""


def install_command(extra: str) -> str:
    """The command that installs the packages of an extra, from where edgepack came from."""
    return f"pip install '.[{extra}]'"


def install_hint(extra: str) -> str:
    """The same as a hint."""
    return f"{install_command(extra)} {SOURCE}"


class EdgepackError(Exception):
    """Root of the tree.

    Args:
        message: what was found and what was expected.
        hint: what the user can do about it.
    """

    exit_code = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class UsageError(EdgepackError):
    """A command, flag or argument that makes no sense."""

    exit_code = 2


class OutputError(UsageError):
    """The output folder exists, is read-only, or its disk is full."""


class InputError(EdgepackError):
    """A file from outside is bad."""

    exit_code = 3


class ModelError(InputError):
    """The model or recipe cannot be read, run or converted."""


class LayerError(ModelError):
    """Some layers cannot be written as planned; with these dense the rest may well be.

    Attributes:
        layers: name → why.
    """

    def __init__(self, layers: Mapping[str, str], *, hint: str | None = None) -> None:
        super().__init__("; ".join(f"{name}: {why}" for name, why in layers.items()), hint=hint)
        self.layers = dict(layers)

    def __reduce__(self) -> tuple[type[LayerError], tuple[dict[str, str]], dict[str, object]]:
        """It may come from another process: made anew of its layers, not of its message."""
        return type(self), (self.layers,), self.__dict__


class DataError(InputError):
    """Calibration, validation or test data do not fit the model."""


class TargetsError(InputError):
    """targets.yaml is malformed, or a target lacks what was asked of it."""


class PackError(InputError):
    """A pack folder, its manifest or its results cannot be used."""


class DeviceError(EdgepackError):
    """A device was unreachable or failed."""

    exit_code = 4


class TransientDeviceError(DeviceError):
    """A failure that another try may mend: a dropped link, a timeout, a throttled CPU."""


class LinkError(TransientDeviceError):
    """The wire to a device broke or was silent too long; what was started there goes on."""


class StableDeviceError(DeviceError):
    """A failure that will repeat: no runtime, an illegal instruction, a full disk."""


class BudgetError(EdgepackError):
    """No plan meets the budget; the best attempt is written and the layers to blame are named."""

    exit_code = 5


class RegressionError(EdgepackError):
    """A pack has grown, or become slower or less accurate, by more than a threshold of `edgepack check`."""

    exit_code = 6


class ProofError(EdgepackError):
    """No file of any plan could be written and proved; a dense one takes its place."""

    exit_code = 1
