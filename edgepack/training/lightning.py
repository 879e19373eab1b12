"""Training-time compression as a callback of Lightning: `Trainer(callbacks=[CompressionCallback(compression)])`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgepack.errors import UsageError
from edgepack.training.compression import Compression

try:
    from lightning.pytorch import Callback
except ModuleNotFoundError:
    try:
        from pytorch_lightning import Callback
    except ModuleNotFoundError as err:
        raise UsageError("edgepack.training.lightning needs Lightning", hint="pip install lightning") from err


class CompressionCallback(Callback):  # type: ignore[misc]
    """Moves the schedule after every batch on which an optimizer stepped.

    Accumulated batches do not count. The schedule is saved with, and restored from, Lightning's checkpoints.

    Args:
        compression: of the LightningModule that is trained, or of a model inside it.
    """

    def __init__(self, compression: Compression) -> None:
        super().__init__()
        self.compression = compression
        self._seen = 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Attach the optimizers, which exist from here on."""
        for optimizer in trainer.optimizers:
            self.compression.attach(optimizer)
        self._seen = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Count the step, if there was one."""
        if trainer.global_step > self._seen:
            self._seen = trainer.global_step
            self.compression.step()

    def state_dict(self) -> dict[str, Any]:
        """Goes into the checkpoint."""
        return self.compression.state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Comes out of the checkpoint, after the module's weights and before the optimizers."""
        self.compression.load_state_dict(state_dict)
