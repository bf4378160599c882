"""How a model is trained, as data: optimiser, learning rates, and which examples each step sees.

Leaving examples out comes in two forms:

- ``filter`` (random subsets): the epoch's permutation without the left-out examples, cut into full batches; a
  subset model takes fewer steps, at equal epochs;
- ``mask`` (targeted removal): the batches of the full run, in which left-out examples contribute nothing and the sum
  is still divided by the full batch size. The run stays paired with the full run, step by step.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """The ``training`` section of a testbed. ``clip``: the largest gradient norm of a step; ``None`` does not clip.
    ``averaged``: the decay by which the parameters are averaged along training; the average is the model. 0: the last.
    """

    epochs: int
    batch: int
    lr: float
    weight_decay: float
    checkpoints: int = 1
    warmup: float = 0.0
    schedule: str = "cosine"
    optimizer: str = "adamw"
    clip: float | None = None
    momentum: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.99
    averaged: float = 0.0

    @classmethod
    def of(cls, settings: dict) -> Recipe:
        return cls(**{name: settings[name] for name in cls.__dataclass_fields__ if name in settings})

    def make(self, params: Iterable[Tensor]) -> torch.optim.Optimizer:
        """The optimiser of this recipe; training sets its learning rate at every step."""
        if self.optimizer == "sgd":
            return torch.optim.SGD(params, self.lr, self.momentum, weight_decay=self.weight_decay, fused=True)
        if self.optimizer not in ("adamw", "adamw_averaged"):
            raise ValueError(f"optimizer={self.optimizer!r}; 'adamw', 'adamw_averaged' or 'sgd'.")
        return torch.optim.AdamW(params, betas=(self.beta1, self.beta2), weight_decay=self.weight_decay, fused=True)


def data_order(n: int, epochs: int, seed: int) -> np.ndarray:
    """[epochs, N]: one permutation of all N examples an epoch, the same for every subset of them."""
    return np.stack([np.random.default_rng([seed, 13, epoch]).permutation(n) for epoch in range(epochs)])


def steps_of(order: np.ndarray, batch: int, mask: np.ndarray, how: str) -> list[tuple[np.ndarray, int]]:
    """``[(examples of the step, divisor of their summed loss), ...]``, for ``how`` see above."""
    if how not in ("filter", "mask"):
        raise ValueError(f"how={how!r}; 'filter' (random subsets) or 'mask' (paired removal).")
    steps = []
    for epoch in order:
        kept = epoch[mask[epoch]] if how == "filter" else epoch
        for start in range(0, len(kept), batch):
            members = kept[start : start + batch]
            steps.append((members[mask[members]], len(members)))
    return steps


def schedule(recipe: Recipe, total: int) -> np.ndarray:
    """Learning rates [total]: linear warm-up over the first ``warmup`` share of the steps, then by ``recipe.schedule``:
    ``cosine`` (half a cosine to 0), ``constant``, or ``step`` (a tenth after half of the steps, a hundredth after three
    quarters).
    """
    warm = max(1, round(recipe.warmup * total))
    step = np.arange(1, total + 1)
    decay = {
        "cosine": 0.5 * (1 + np.cos(np.pi * np.clip((step - warm) / max(1, total - warm), 0, 1))),
        "constant": np.ones(total),
        "step": np.where(step > 0.75 * total, 0.01, np.where(step > 0.5 * total, 0.1, 1.0)),
    }
    if recipe.schedule not in decay:
        raise ValueError(f"schedule={recipe.schedule!r}; one of {sorted(decay)}.")
    return recipe.lr * np.where(step <= warm, step / warm, decay[recipe.schedule])
