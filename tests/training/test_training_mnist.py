"""Real digits: with the schedule, a quarter of the parameters ends within a point of the dense model."""

from __future__ import annotations

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from edgepack.training import Compression, apply_compression

RECIPE = runpy.run_path(str(Path(__file__).parents[2] / "bench" / "models" / "mnist_mlp.py"))
BATCH, digits, shifted = RECIPE["BATCH"], RECIPE["digits"], RECIPE["shifted"]
EPOCHS, PEAK = 8, 3e-3
STEPS = EPOCHS * (4000 // BATCH)


def trained(compressor: str | None) -> tuple[nn.Module, float, Compression | None]:
    """784-512-10 after training, and its accuracy in percent on a thousand digits that it has not seen."""
    x, y, test_x, test_y = (torch.from_numpy(np.asarray(array)) for array in digits())
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(784, 512), nn.ReLU(), nn.Linear(512, 10))
    optimizer = torch.optim.Adam(model.parameters(), PEAK)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, PEAK, total_steps=STEPS)
    compression = None
    if compressor is not None:
        compression = apply_compression(
            model,
            compressor=compressor,
            rank=72,
            begin_step=STEPS // 3,
            frequency=3,
            alpha_decrement=0.05,
            optimizer=optimizer,
        )
    for _ in range(EPOCHS):
        for rows in torch.randperm(len(x), generator=generator).split(BATCH)[: len(x) // BATCH]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(shifted(x[rows], generator)), y[rows]).backward()
            optimizer.step()
            schedule.step()
            if compression is not None:
                compression.step()
    model = model if compression is None else compression.finish()
    with torch.no_grad():
        accuracy = float((model.eval()(test_x).argmax(1) == test_y).float().mean() * 100)
    return model, accuracy, compression


@pytest.fixture(scope="module")
def dense() -> tuple[nn.Module, float]:
    return trained(None)[:2]


@pytest.mark.parametrize("compressor", ["low-rank", "whitened"])
def test_a_quarter_of_the_parameters_is_within_a_point_of_dense(
    dense: tuple[nn.Module, float], compressor: str
) -> None:
    model, accuracy, compression = trained(compressor)
    assert dense[1] > 92
    assert accuracy >= dense[1] - 1.0
    assert 4 * sum(p.numel() for p in model.parameters()) < sum(p.numel() for p in dense[0].parameters())
    assert compression is not None
    assert "break-even" in compression.skipped["2"]
