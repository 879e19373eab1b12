from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from edgepack.errors import UsageError
from edgepack.training import apply_compression
from tests.training.small_models import batch, network

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from lightning import pytorch as pl

    from edgepack.training.lightning import CompressionCallback

STEPS = 24


class Module(pl.LightningModule):  # type: ignore[misc]
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.model = network(seed)

    def training_step(self, data: Any, index: int) -> Tensor:
        x, y = data
        return nn.functional.cross_entropy(self.model(x), y)

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), 0.01)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


def fit(folder: Path, seed: int, max_epochs: int, resume: str | None = None, **settings: Any) -> CompressionCallback:
    """Epochs of 6 batches."""
    module = Module(seed)
    compression = apply_compression(
        module, compressor="whitened", rank=4, begin_step=5, frequency=2, alpha_decrement=0.2
    )
    callback = CompressionCallback(compression)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=max_epochs,
        callbacks=[callback, pl.callbacks.ModelCheckpoint(folder, filename="last", save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(module, torch.utils.data.DataLoader([batch(i) for i in range(6)], batch_size=None), ckpt_path=resume)
    return callback


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_training_and_resuming_with_the_real_trainer(tmp_path: Path, epochs: int) -> None:
    whole = fit(tmp_path / "whole", 0, 4).compression
    assert whole.steps == STEPS
    fit(tmp_path / "first", 0, epochs)
    checkpoint = max((tmp_path / "first").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    resumed = fit(tmp_path / "second", 1, 4, resume=str(checkpoint)).compression
    assert resumed.steps == STEPS
    expected, found = whole.finish().state_dict(), resumed.finish().state_dict()
    assert list(expected) == list(found)
    assert "model.0.0.weight" in found
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    assert fit(tmp_path, 0, 2, accumulate_grad_batches=3).compression.steps == 4


def test_a_layer_that_no_optimizer_trains_is_reported(tmp_path: Path) -> None:
    module = Module(0)
    callback = CompressionCallback(apply_compression(network(1), rank=4, begin_step=5))
    trainer = pl.Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[callback],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        default_root_dir=tmp_path,
    )
    with pytest.raises(UsageError, match="no attached optimizer"):
        trainer.fit(module, torch.utils.data.DataLoader([batch(0)], batch_size=None))
