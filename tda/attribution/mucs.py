"""MUCS: mirrored unlearning and noise-consistent skew, for denoisers (arXiv 2605.17938, code sony/mucs).

*Mirrored*: the query x, not the training image, is what a copy of the model forgets. With a batch of B random training
images, x repeated B times, noise and timesteps of their own for each row, and l_null the mean loss of the untrained
network on training images, the copy takes optimiser steps on

    mean l(training images) - lambda mean min(l(x), l_null)     until  mean min(l(x), l_null) >= (1 - tolerance) l_null.

There is no descent on x. Then every training image i meets J draws of noise, the same before (l) and after (u):

    skew(i) = (1/J) sum_j (u_ij - l_ij) / (u_ij + l_ij + 1e-3)        difference(i) = (1/J) sum_j (u_ij - l_ij)

Losses are squared errors per pixel, at noise of variance 1. Positive = the model that forgot the query is worse at i.

Read from the code where the paper is silent, or by us (ours): the steps see timesteps, noise and left-out tokens as
training draws them, training images with replacement, the same draws for every query (ours); the optimiser is that of
training at a share of its peak rate, without clipping; the levels of noise, in the code the noisiest 70 % of a Karras
grid, sigma = 80 to 0.31, are timesteps evenly spaced from sigma = 0.31 (t = 91) to 999 (ours). As published, a tenth of
the peak rate and only the weights of the MLPs moving, a sprite is not forgotten within 500 steps: by default all
parameters move, at half the peak rate (ours). With ``parameters: mlp`` lambda = 1 is enough, at a price to the rest.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from tda.attribution.registry import StepTooLarge, method
from tda.task import Examples, Params, Task, n_examples, take, tensors
from tda.tools.cache import remembered
from tda.tools.door import entered
from tda.tools.noisy_losses import Reading, before_and_after, check_denoiser, compared, moving_names
from tda.tools.options import Count, Flag, Positive, Share, option, read

NULL_BATCHES = 200


class BoundNotReached(ValueError):
    """A query was not forgotten within the limit of steps: it has no scores."""


@dataclass(frozen=True, kw_only=True)
class Options(Reading):
    """How a query is unlearnt, and how the losses of the training images are then compared."""

    bounded: Flag = option(True, "bound and stop; otherwise the loss of x is not capped and max_steps are taken")
    forget: Positive = option(0.2, "lambda")
    rate: Positive = option(0.5, "learning rate, as a share of training's peak rate")
    batch: Count = option(100, "B")
    tolerance: Share = option(0.05, "share of l_null that the loss of x may stay below it")
    max_steps: Count = option(500, "most steps; a bounded run that needs more is refused")

    def moving(self) -> Options:
        """Without what only says how losses are compared: equal for all readings of the same unlearning."""
        read = {f.name: f.default for f in fields(Reading) if f.name not in ("seed", "parameters")}
        return replace(self, **read)


@dataclass(frozen=True)
class Unlearnt:
    """The model after ``steps`` steps; before each step, and at the end, the losses of x (capped at ``null`` in a
    bounded run) and of the training images of the batch.
    """

    params: Params
    steps: int
    forgotten: list[float]
    retained: list[float]
    null: float


@method("mucs", family="unlearning", paper="MUCS", needs=("params", "checkpoints"), signed=True, cost="per query")
def attribute(task: Task, train: Examples, queries: Examples, options: Options) -> np.ndarray:
    """MUCS scores, [Q, N]: ``skew`` in (-1, 1), ``difference`` in squared error per pixel.

    For denoisers with their training record (the untrained network, the recipe). Raises :class:`BoundNotReached` with
    the queries that are not forgotten within ``max_steps``, ``ValueError`` for queries that are at the bound before the
    first step, and :class:`StepTooLarge` where an unbounded run leaves a model whose losses are not finite.
    """
    options.timesteps()
    return compared(*_losses(task, train, queries, replace(options, score="skew")), options)


def unlearnt(task: Task, train: Examples, queries: Examples, **options) -> list[Unlearnt]:
    """The unlearning runs themselves, one a query, whether they reach their bound or not; ``options`` of
    :func:`attribute`.
    """
    chosen = read("mucs", Options, options)
    with entered(task, ("params",), train=train, queries=queries) as (train, queries):
        return _runs(task, train, queries, chosen.moving())


# --- unlearning


@remembered(8)
def _runs(task: Task, train: Examples, queries: Examples, options: Options) -> list[Unlearnt]:
    """One query after the other: stacked by ``vmap``, a step of 300,000 parameters takes as long for each of them."""
    null = null_loss(task, train, options.batch, options.seed)
    return [_unlearn(task, train, take(queries, [q]), null, options) for q in range(n_examples(queries))]


def _unlearn(task: Task, train: Examples, query: Examples, null: float, options: Options) -> Unlearnt:
    recipe, size, forgotten, retained = task.run.recipe, options.batch, [], []
    moved = {k: task.params[k].detach().clone().requires_grad_() for k in moving_names(task, options.parameters)}
    optimizer = recipe.make(moved.values())
    for group in optimizer.param_groups:
        group["lr"] = options.rate * recipe.lr
    for step in range(options.max_steps + 1):
        losses = task.loss_fn({**task.params, **moved}, shown(task, train, query, size, options.seed, step), "example")
        retain, forget = losses[:size].mean(), losses[size:]
        forget = (forget.clamp(max=null) if options.bounded else forget).mean()
        forgotten.append(forget.item()), retained.append(retain.item())
        if options.bounded and forgotten[-1] >= (1 - options.tolerance) * null:
            break
        if step < options.max_steps:
            optimizer.zero_grad()
            (retain - options.forget * forget).backward()
            optimizer.step()
    params = {k: moved.get(k, v).detach() for k, v in task.params.items()}
    return Unlearnt(params, step, forgotten, retained, null)


def shown(task: Task, train: Examples, query: Examples, size: int, seed: int, step: int) -> Examples:
    """``size`` random training images and the query ``size`` times, [2 size, ...], as training shows examples: with a
    timestep and noise of their own.
    """
    rng = np.random.default_rng([seed, 53, step])
    rows = torch.from_numpy(rng.integers(n_examples(train), size=size))
    both = {k: torch.cat([train[k][rows], query[k].expand(size, -1)]) for k in ("pixels", "condition")}
    return task.loss_fn.redrawn(both, int(rng.integers(2**31)), step)


@remembered(4)
def null_loss(task: Task, train: Examples, batch: int = 100, seed: int = 0) -> float:
    """l_null: the mean loss of the untrained network over 200 batches of training images, as training shows them."""
    check_denoiser(task)
    if task.run is None or task.run.initial is None or task.run.recipe is None:
        raise ValueError(
            f"mucs: the training record of task {task.name!r} has no untrained network or no recipe. Give task.run its "
            f"'initial' and 'recipe', as tda.training.train_recorded does."
        )
    initial, total = task.run.initial.params, 0.0
    with torch.no_grad():
        for number in range(NULL_BATCHES):
            rng = np.random.default_rng([seed, 54, number])
            images = take(tensors(train), rng.integers(n_examples(train), size=batch))
            total += task.loss_fn(initial, task.loss_fn.redrawn(images, int(rng.integers(2**31)), number)).item()
    return total / NULL_BATCHES


def _refuse(runs: list[Unlearnt], options: Options) -> None:
    if not options.bounded:
        return
    null = runs[0].null
    goal = (1 - options.tolerance) * null
    where = f"the bound {goal:.3g}, 1 - tolerance={options.tolerance} of the untrained network's loss {null:.3g},"
    if done := [q for q, run in enumerate(runs) if not run.steps]:
        raise ValueError(
            f"mucs: the losses of queries {done} are at {where} before the first step: nothing to unlearn. Leave them "
            f"out, or attribute a model that has learnt them."
        )
    if short := [q for q, run in enumerate(runs) if not run.forgotten[-1] >= goal]:
        best = max(runs[q].forgotten[-1] for q in short)
        raise BoundNotReached(
            f"mucs: queries {short} do not reach {where} within max_steps={options.max_steps} (the nearest gets to "
            f"{best:.3g}); they are not ranked. Raise max_steps, rate or forget, move all parameters, or leave them "
            f"out."
        )


# --- reading


@remembered(4)
def _losses(task: Task, train: Examples, queries: Examples, options: Options) -> tuple[Tensor, Tensor]:
    """Losses [N, J] before and [Q, N, J] after each query is unlearnt."""
    runs = _runs(task, train, queries, options.moving())
    _refuse(runs, options)
    losses = before_and_after(task, [run.params for run in runs], train, options)
    broken = torch.nonzero(~losses[1].flatten(1).isfinite().all(1)).flatten().tolist()
    if broken:
        raise StepTooLarge(
            f"mucs: unlearning queries {broken} leaves a model whose losses are not finite; a broken model ranks "
            f"noise. Lower max_steps or rate, or take bounded=True."
        )
    return losses
