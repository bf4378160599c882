"""One plain, deterministic training loop for every model of the compendium, and what it records.

AdamW, or SGD with heavy-ball momentum and (coupled) weight decay, as in ``torch.optim``:

    b <- momentum * b + gradient + weight_decay * theta;    theta <- theta - rate * b.

The same seed gives the same bits: initialisation, data order and every update run on one thread in a fixed order.

Which examples a step sees, and what is left out, is said in :mod:`tda.recipe`.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tda import checkpoints
from tda.lm import losses
from tda.recipe import Recipe, data_order, schedule, steps_of
from tda.sequences import real_tokens, trim
from tda.task import Checkpoint, Examples, Params, TrainingRun, n_examples, take, tensors


@dataclass(frozen=True)
class Trained:
    """Final parameters, curves, learning rates [steps], data order [epochs, N], seconds, and tokens trained on (of a
    classifier: examples).
    """

    params: Params
    learning_rates: np.ndarray
    order: np.ndarray
    curves: dict[str, list[float]]
    seconds: float
    tokens: int


def train(
    loss_fn: Callable[..., Tensor],
    init: Params,
    data: Examples,
    recipe: Recipe,
    seed: int,
    mask: np.ndarray | None = None,
    how: str = "filter",
    folder: Path | None = None,
    watch: Examples | None = None,
    progress: Callable[[str], None] | None = None,
    about: Mapping[str, str] | None = None,
    keep: Callable[[int, float, float, Params, dict[str, Params]], None] | None = None,
) -> Trained:
    """Minimise the mean example loss from ``init`` (left untouched).

    Parameters: ``mask`` [N] bool, the examples to train on (all by default); ``how`` as in the module's text;
    ``folder``, where the initial parameters (step 0) and ``recipe.checkpoints`` checkpoints go, evenly spaced in steps
    and including the last, each with its seed, its step, a checksum and what it belongs to (``about``); ``watch``,
    examples whose mean loss is recorded once an epoch; ``progress``, called with one line an epoch; ``keep(step, lr,
    lr_sum, params, optimiser state)``, called where a checkpoint is due (:func:`train_recorded`). Raises ``ValueError``
    for an empty subset and for a loss that is no longer finite.
    """
    n = n_examples(data)
    mask = np.ones(n, bool) if mask is None else np.asarray(mask)
    if mask.shape != (n,) or mask.dtype != bool or not mask.any():
        raise ValueError(f"mask must be bool of shape ({n},) with at least one example; got {mask.dtype} {mask.shape}.")
    order = data_order(n, recipe.epochs, seed)
    steps = steps_of(order, recipe.batch, mask, how)
    rates = schedule(recipe, len(steps))
    inputs = tensors(data)
    lengths = real_tokens(data).sum(1).numpy()
    params = {k: v.detach().clone().requires_grad_() for k, v in init.items()}
    optimizer = recipe.make(params.values())
    if folder:
        keep = functools.partial(checkpoints.save, folder, {**(about or {}), "seed": seed})
    if keep and recipe.checkpoints > len(steps):
        raise ValueError(
            f"training.checkpoints={recipe.checkpoints}, but the run has {len(steps)} steps. Lower it, or train longer."
        )
    due = {round((i + 1) * len(steps) / recipe.checkpoints) for i in range(recipe.checkpoints)} if keep else set()
    if keep:
        keep(0, 0.0, 0.0, params, {})
    per_epoch = len(steps) // recipe.epochs
    curves: dict[str, list[float]] = {"train": [], "watch": []}
    began, running, saved = time.perf_counter(), [], 0
    for step, ((members, divisor), rate) in enumerate(zip(steps, rates, strict=True), start=1):
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad(set_to_none=False)
        if len(members):
            loss = loss_fn(params, trim(take(inputs, members)), "sum") / divisor
            loss.backward()
            running.append(loss.item() * divisor / len(members))
        else:  # every example of this batch was left out: the optimiser still takes its (decaying) step
            for p in params.values():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad.zero_()
        if recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(params.values(), recipe.clip)
        optimizer.step()
        if step in due:
            keep(step, float(rate), float(rates[saved:step].sum()), params, _state(optimizer, params))
            saved = step
        if step % per_epoch == 0 and len(curves["train"]) < recipe.epochs:
            _close_epoch(curves, running, loss_fn, params, watch, recipe, progress)
            running = []
    tokens = int(sum(lengths[members].sum() for members, _ in steps))
    final = {k: v.detach() for k, v in params.items()}
    return Trained(final, rates, order, curves, time.perf_counter() - began, tokens)


def _close_epoch(curves, running, loss_fn, params, watch, recipe, progress) -> None:
    mean = float(np.mean(running)) if running else float("nan")
    if not np.isfinite(mean) and running:
        raise ValueError(
            f"the training loss is {mean} in epoch {len(curves['train']) + 1} at lr={recipe.lr}, clip={recipe.clip}. "
            f"Lower training.lr{'' if recipe.clip is None else ' or training.clip'}."
        )
    curves["train"].append(mean)
    if watch is not None:
        curves["watch"].append(float(losses(loss_fn, params, watch).mean()))
    if progress:
        shown = f", held-out {curves['watch'][-1]:.3f}" if watch is not None else ""
        progress(f"epoch {len(curves['train'])}/{recipe.epochs}: loss {mean:.3f}{shown} nats")


def _state(optimizer: torch.optim.Optimizer, params: Params) -> dict[str, Params]:
    """The optimiser's moments (``exp_avg`` and ``exp_avg_sq``, or ``momentum_buffer``), each like the parameters."""
    first = optimizer.state[next(iter(params.values()))]
    kept = [name for name in ("exp_avg", "exp_avg_sq", "momentum_buffer") if first.get(name) is not None]
    return {name: {k: optimizer.state[v][name] for k, v in params.items()} for name in kept}


def train_recorded(
    loss_fn: Callable[..., Tensor],
    init: Params,
    data: Examples,
    recipe: Recipe,
    seed: int,
    mask: np.ndarray | None = None,
    how: str = "filter",
) -> tuple[Params, TrainingRun]:
    """:func:`train` with its record in memory instead of a folder: ``(final parameters, run)``.

    ``run.initial`` and ``run.checkpoints`` hold ``recipe.checkpoints + 1`` copies of the parameters.
    """
    kept: list[Checkpoint] = []

    def keep(step: int, lr: float, lr_sum: float, params: Params, state: dict[str, Params]) -> None:
        copied = [{k: v.detach().clone() for k, v in part.items()} for part in (params, *state.values())]
        loaded = copied[0], dict(zip(state, copied[1:], strict=True))
        kept.append(Checkpoint(step, lr, lr_sum, lambda: loaded))

    done = train(loss_fn, init, data, recipe, seed, mask, how, keep=keep)
    everyone = np.ones(n_examples(data), bool) if mask is None else mask
    steps = tuple(steps_of(done.order, recipe.batch, everyone, how))

    def retrain(mask: np.ndarray, seed: int) -> Params:
        return train(loss_fn, init, data, recipe, seed, mask, "mask").params

    first, *later = kept
    run = TrainingRun(seed, tuple(later), done.learning_rates, done.order, done.curves, retrain, recipe, first, steps)
    return done.params, run


def matmul_rate(size: int = 1024, repeats: int = 20) -> float:
    """Multiply-add rate of this core in FLOP/s: the best of ``repeats`` square float32 products of the given size."""
    a = torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best
