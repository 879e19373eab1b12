"""Models trained on the 4,000 digits, kept under a key so that an interrupted run goes on where it was."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from models.mnist_mlp import BATCH, PEAK_LEARNING_RATE, one_thread, shifted
from torch import nn

from edgepack.methods import deepthin, hashednet
from edgepack.methods.pruning import pruning
from edgepack.model.layer import View
from edgepack.model.types import Array
from edgepack.training.constexpr import ConstexprLinear
from edgepack.training.pruning import Pruning
from edgepack.workspace import ARRAYS, Cache, Keyed, Step, Workspace

Hook = Callable[[], None]
"""Called after each step."""


def perceptron(sizes: Sequence[int]) -> nn.Sequential:
    """Linear layers with rectifiers between them."""
    layers = [layer for narrow in pairwise(sizes) for layer in (nn.Linear(*narrow), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def dense(sizes: Sequence[int], share: float) -> nn.Sequential:
    """The network as it is."""
    del share
    return perceptron(sizes)


def low_rank(sizes: Sequence[int], share: float) -> nn.Sequential:
    """All layers but the last as two thin ones."""
    model = perceptron(sizes)
    for index, (before, after) in enumerate(list(pairwise(sizes))[:-1]):
        rank = max(int(share * before * after / (before + after)), 1)
        first, second = nn.Linear(before, rank, bias=False), nn.Linear(rank, after)
        # Products of these have the variance 2 / in, as every other layer here that is trained in its small form.
        nn.init.normal_(first.weight, std=(2 / (before * rank)) ** 0.25)
        nn.init.normal_(second.weight, std=(2 / (before * rank)) ** 0.25)
        nn.init.zeros_(second.bias)
        model[2 * index] = nn.Sequential(first, second)
    return model


def hashed(sizes: Sequence[int], share: float, seed: int = 0) -> nn.Sequential:
    """All layers but the last as HashedNets."""
    model = perceptron(sizes)
    for index, (before, after) in enumerate(list(pairwise(sizes))[:-1]):
        # One scale, and the two signs of the method; both count.
        constexpr = hashednet.initial(after, before, int(share * before * after) - 12, seed=seed)
        model[2 * index] = ConstexprLinear(constexpr)
    return model


def thin(sizes: Sequence[int], share: float, seed: int = 0) -> nn.Sequential:
    """All layers but the last as DeepThin."""
    model = perceptron(sizes)
    for index, (before, after) in enumerate(list(pairwise(sizes))[:-1]):
        found = deepthin.initial(after, before, share, seed, gain=2.0)
        if isinstance(found, str):
            raise ValueError(found)
        constexpr = deepthin.written(*found, blank(after, before))
        model[2 * index] = ConstexprLinear(constexpr)
    return model


def blank(out: int, width: int) -> View:
    """A layer of zeros, for its shape."""
    return View("blank", np.zeros((out, width), np.float32), np.zeros(out, np.float32))


BUILDERS: dict[str, Callable[[Sequence[int], float], nn.Sequential]] = {
    "dense": dense,
    "pruning": dense,
    "low-rank": low_rank,
    "hashednet": hashed,
    "deepthin": thin,
}


@one_thread()
def fit(
    model: nn.Module, images: Array, labels: Array, *, epochs: int, seed: int, rate: float, hook: Hook | None = None
) -> nn.Module:
    """Adam with one cycle of the learning rate, digits shifted by up to two pixels, as `mnist_mlp.train`."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.from_numpy(images), torch.from_numpy(labels)
    steps = len(x) // BATCH
    optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps)
    for _ in range(epochs):
        for batch in torch.randperm(len(x), generator=generator).split(BATCH)[:steps]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(shifted(x[batch], generator)), y[batch]).backward()
            optimizer.step()
            schedule.step()
            if hook is not None:
                hook()
    return model.eval()


RATES = {"low-rank": 1e-2, "hashednet": 2e-2, "deepthin": 1e-2, "pruning": 5e-3}
"""Peak learning rates, chosen on held-out training digits by `choose_rates.py`."""


@dataclass(frozen=True)
class Wanted:
    """A network to be trained from scratch.

    Attributes:
        how: the form of all layers but the last, one of `BUILDERS`.
        sizes: widths, the input's first.
        share: of the bytes of those layers in 8 bits.
        epochs: over the images.
        seed: of the start, the order, the shifts.
        rate: peak learning rate, by default that of `RATES`.
    """

    how: str
    sizes: Sequence[int]
    share: float
    epochs: int
    seed: int
    rate: float | None = None

    @property
    def peak(self) -> float:
        """The learning rate."""
        return self.rate or RATES.get(self.how, PEAK_LEARNING_RATE)


def trained(cache: Cache, wanted: Wanted, data: tuple[Array, Array]) -> nn.Sequential:
    """A network trained from scratch.

    Args:
        cache: where it is kept.
        data: images (N, 784) and labels.
    """
    torch.manual_seed(wanted.seed)
    model = BUILDERS[wanted.how](wanted.sizes, wanted.share)
    structures = [module.structure for module in model.modules() if isinstance(module, ConstexprLinear)]
    task = Keyed([wanted, wanted.peak, data, structures], lambda: _Task(model, wanted, data))
    state = Workspace(cache, cache.root).cached(TRAINED, task)
    model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
    return model.eval()


@dataclass(frozen=True)
class _Task:
    model: nn.Sequential
    wanted: Wanted
    data: tuple[Array, Array]


def _trained(task: _Task) -> dict[str, Array]:
    model, wanted, data = task.model, task.wanted, task.data
    hook = None
    if wanted.how == "pruning":
        steps = wanted.epochs * (len(data[0]) // BATCH)
        hidden = _hidden(wanted.sizes)
        names = {f"{2 * i}": kept_share(after, before, wanted.share) for i, (before, after) in hidden}
        cut = Pruning(model, names, steps // 10, steps * 7 // 10, layers=list(names))
        hook = cut.step
    fit(model, *data, epochs=wanted.epochs, seed=wanted.seed, rate=wanted.peak, hook=hook)
    return {name: value.numpy() for name, value in model.state_dict().items()}


TRAINED: Step[_Task, dict[str, Array]] = Step("seeds-trained", 2, _trained, ARRAYS, tools=("torch",))


def _hidden(sizes: Sequence[int]) -> list[tuple[int, tuple[int, int]]]:
    return list(enumerate(list(pairwise(sizes))[:-1]))


def kept_share(out: int, width: int, share: float) -> float:
    """Of the weights that the sparse store holds in `share` of a byte per weight, where they lie anywhere."""
    random = np.random.default_rng(0).standard_normal((out, width)).astype(np.float32)
    found = pruning(View("random", random, None), share)
    if isinstance(found, str):
        raise ValueError(found)
    return float(np.count_nonzero(found.weight) / random.size)
