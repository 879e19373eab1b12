"""Training-time compression as a callback of Hugging Face's Trainer:
`Trainer(model, …, callbacks=[CompressionTrainerCallback(compression)])`."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

from edgepack.errors import DataError, UsageError
from edgepack.training.compression import Compression

try:
    from transformers import TrainerCallback
except ModuleNotFoundError as err:
    raise UsageError(
        "edgepack.training.huggingface needs transformers", hint="pip install transformers accelerate"
    ) from err

STATE_FILE = "edgepack_compression.pt"


class CompressionTrainerCallback(TrainerCallback):  # type: ignore[misc]
    """Moves the schedule after every optimizer step; its state lies in a file of its own in every checkpoint folder.

    Args:
        compression: of the model that is trained.
    """

    def __init__(self, compression: Compression) -> None:
        self.compression = compression

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Go on where the checkpoint was, and attach the optimizer.

        Raises:
            DataError: training resumes from a checkpoint without the schedule's state.
        """
        if state.global_step != self.compression.steps:
            self.compression.load_state_dict(_load(_folders(args, state)))
        self.compression.attach(kwargs["optimizer"])

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Count the step."""
        self.compression.step()

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Write the schedule's state beside the weights."""
        import torch

        if not state.is_world_process_zero:
            return
        folder = _checkpoint(args, state)
        folder.mkdir(parents=True, exist_ok=True)
        unfinished = folder / f"{STATE_FILE}.tmp"
        torch.save(self.compression.state_dict(), unfinished)
        os.replace(unfinished, folder / STATE_FILE)


def _checkpoint(args: Any, state: Any) -> Path:
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _folders(args: Any, state: Any) -> list[Path]:
    """Where the state may be; the Trainer does not tell callbacks which folder it resumes from."""
    given = getattr(args, "resume_from_checkpoint", None)
    return [*([Path(given)] if isinstance(given, str) else []), _checkpoint(args, state)]


def _load(folders: list[Path]) -> dict[str, Any]:
    import torch

    for folder in folders:
        file = folder / STATE_FILE
        if not file.is_file():
            continue
        damaged = f"{file}: damaged, the state of a compression was expected"
        if not zipfile.is_zipfile(file):
            raise DataError(damaged)
        try:
            state: dict[str, Any] = torch.load(file, weights_only=True, map_location="cpu")
        except (RuntimeError, EOFError, KeyError, ValueError, pickle.UnpicklingError) as err:
            raise DataError(f"{damaged} ({err})") from err
        return state
    raise DataError(
        f"no {STATE_FILE} in {' or '.join(map(str, folders))}: the schedule's place is not known",
        hint="resume from a checkpoint that was saved with this callback, in args.output_dir",
    )
