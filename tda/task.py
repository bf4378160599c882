"""The contract between *what is trained and measured* and *how it is attributed*.

Examples are plain dicts with the example axis first: tensors (``input_ids``, ``labels``, ...) that the loss reads,
and lists of strings (``text``, ``entity``, ...) that describe them and that only non-gradient methods read.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from tda.recipe import Recipe

Examples = dict[str, Any]
Params = dict[str, Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """One recorded moment of training: the learning rate of its last step, and the sum of the learning rates of all
    steps since the previous checkpoint. ``params`` and ``optimizer`` (AdamW's moments ``{"exp_avg": ..., "exp_avg_sq":
    ...}``, SGD's ``{"momentum_buffer": ...}``) are read from disk when asked for.
    """

    step: int
    lr: float
    lr_sum: float
    load: Callable[[], tuple[Params, dict[str, Params]]] = field(repr=False)

    @property
    def params(self) -> Params:
        return self.load()[0]

    @property
    def optimizer(self) -> dict[str, Params]:
        return self.load()[1]


@dataclass(frozen=True)
class TrainingRun:
    """The record of one training run. ``order`` int [epochs, N]: the examples as they were visited. ``retrain(mask,
    seed)`` trains on the examples where ``mask`` [N] is true and returns the final parameters; ``retrain_many(masks,
    seeds, moments)`` does so for random subsets as a bank trains on them (``filter`` of :mod:`tda.recipe`), and yields
    the parameters at so many evenly spaced moments of each run, the last being the end. ``initial`` (step 0),
    ``steps[t] = (examples of step t, divisor of their summed loss)``, ``learning_rates[t]`` and ``recipe`` are what it
    takes to repeat the run step by step.
    """

    seed: int
    checkpoints: tuple[Checkpoint, ...]
    learning_rates: np.ndarray
    order: np.ndarray
    curves: dict[str, list[float]]
    retrain: Callable[[np.ndarray, int], Params] | None = None
    retrain_many: Callable[[np.ndarray, Sequence[int], int], Iterator[list[Params]]] | None = None
    recipe: Recipe | None = None
    initial: Checkpoint | None = None
    steps: tuple[tuple[np.ndarray, int], ...] = ()


@dataclass(frozen=True)
class Task:
    """A trained model as attribution methods see it: a language model, a classifier, a regression, a denoiser.

    ``loss_fn(params, batch, reduction)`` is pure and works under ``torch.func``. With l_i the mean negative
    log-likelihood of example i over its target tokens (nats):

    - ``"mean"``: the mean of l_i over the batch (scalar), which is the training objective;
    - ``"sum"``: the sum of l_i (scalar);
    - ``"example"``: l_i, [B];
    - ``"token"``: the negative log-likelihood of every token, [B, T], zero where a position is not a target.

    ``outputs_fn(params, batch) -> (outputs [B, T, C], targets)`` is the same loss taken apart; ``output_loss`` names
    what joins them (:mod:`tda.output_loss`). It runs the modules of ``model``, so that hooks on its layers see inputs
    and outputs. ``encode["text"](examples)`` gives a list of strings, ``encode["features"]`` an array [N, D],
    ``encode["group"]`` the metadata label (person, author, class) of every example.
    """

    name: str
    loss_fn: Callable[..., Tensor]
    params: Params
    model: torch.nn.Module | None = None
    run: TrainingRun | None = None
    encode: dict[str, Callable[[Examples], Any]] = field(default_factory=dict)
    outputs_fn: Callable[[Params, Examples], tuple[Tensor, Tensor]] | None = None
    output_loss: str = "cross_entropy"


def n_examples(examples: Examples) -> int:
    """Length of the example axis."""
    return len(next(iter(examples.values())))


def take(examples: Examples, index) -> Examples:
    """The examples at ``index`` (a slice, integer array or boolean mask), lists and tensors alike."""
    positions = np.arange(n_examples(examples))[index]
    rows = torch.as_tensor(positions)
    return {k: v[rows] if isinstance(v, Tensor) else [v[i] for i in positions] for k, v in examples.items()}


def tensors(examples: Examples) -> dict[str, Tensor]:
    """Only the tensors, which is what the loss reads and ``vmap`` accepts."""
    return {k: v for k, v in examples.items() if isinstance(v, Tensor)}


def chunks(n: int, size: int) -> Iterator[slice]:
    """Consecutive slices of at most ``size`` that cover ``range(n)``."""
    if size < 1:
        raise ValueError(f"chunk={size}; a chunk holds at least 1 example. Use a positive number.")
    return (slice(start, min(start + size, n)) for start in range(0, n, size))


@functools.cache
def say_once(line: str) -> None:
    """Print a line the first time that there is reason to, in this process."""
    print(line, flush=True)


def use_threads() -> int:
    """One thread unless OMP_NUM_THREADS says otherwise: bit-equal results need a fixed count. Returns the count.

    Also lets torch flush subnormal numbers to zero, which slow the backward pass of memorised examples several times.
    """
    count = int(os.environ.get("OMP_NUM_THREADS", "1"))
    torch.set_num_threads(count)
    torch.set_flush_denormal(True)
    return count
