from __future__ import annotations

import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

from edgepack.errors import DataError
from edgepack.training import apply_compression
from tests.training.small_models import batch, network

if TYPE_CHECKING:
    from edgepack.training.huggingface import CompressionTrainerCallback

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning", "ignore::FutureWarning")

STEPS = 24


class Classifier(nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        self.network = network(seed)

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        scores = self.network(x)
        return {"loss": nn.functional.cross_entropy(scores, labels), "logits": scores}


def trainer_of(folder: Path, seed: int, **settings: Any) -> tuple[Any, CompressionTrainerCallback]:
    """Imports what takes seconds: not in every process that only collects these tests."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from transformers import Trainer, TrainingArguments

        from edgepack.training.huggingface import CompressionTrainerCallback

    model = Classifier(seed)
    callback = CompressionTrainerCallback(
        apply_compression(model, compressor="whitened", rank=4, begin_step=8, frequency=2, alpha_decrement=0.2)
    )
    x, y = batch(0, size=128)
    arguments: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": STEPS,
        "per_device_train_batch_size": 16,
        "save_steps": 6,
        "learning_rate": 0.01,
        "weight_decay": 0.01,
        "report_to": [],
        "disable_tqdm": True,
        "use_cpu": True,
        "logging_steps": 1000,
        "seed": 0,
        "dataloader_pin_memory": False,
        "max_grad_norm": 1.0,
    }
    rows = [{"x": row, "labels": label} for row, label in zip(x, y, strict=True)]
    trainer = Trainer(model, TrainingArguments(**{**arguments, **settings}), train_dataset=rows, callbacks=[callback])
    return trainer, callback


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Tensor]]:
    """The folder of a run with its checkpoints, and what the finished model holds."""
    folder = tmp_path_factory.mktemp("whole")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer, callback = trainer_of(folder, 0)
        trainer.train()
    assert callback.compression.steps == STEPS
    return folder, callback.compression.finish().state_dict()


@pytest.mark.parametrize("step", [6, 12, 18])
def test_resuming_with_the_real_trainer_ends_in_the_same_bits(
    whole: tuple[Path, dict[str, Tensor]], tmp_path: Path, step: int
) -> None:
    folder, expected = whole
    shutil.copytree(folder / f"checkpoint-{step}", tmp_path / f"checkpoint-{step}")
    trainer, callback = trainer_of(tmp_path, 1)
    trainer.train(resume_from_checkpoint=True)
    found = callback.compression.finish().state_dict()
    assert list(found) == list(expected)
    assert "network.0.0.weight" in found
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_accumulated_batches_are_one_step(tmp_path: Path) -> None:
    trainer, callback = trainer_of(tmp_path, 0, max_steps=4, gradient_accumulation_steps=2)
    trainer.train()
    assert callback.compression.steps == 4


@pytest.mark.parametrize("content", [None, b"junk"])
def test_a_checkpoint_without_the_schedule_is_refused(
    whole: tuple[Path, dict[str, Tensor]], tmp_path: Path, content: bytes | None
) -> None:
    from edgepack.training.huggingface import STATE_FILE

    shutil.copytree(whole[0] / "checkpoint-6", tmp_path / "checkpoint-6")
    file = tmp_path / "checkpoint-6" / STATE_FILE
    file.unlink() if content is None else file.write_bytes(content)
    trainer, _ = trainer_of(tmp_path, 1)
    with pytest.raises(DataError, match=f"no {STATE_FILE} in" if content is None else "damaged"):
        trainer.train(resume_from_checkpoint=True)
