"""The two published ways of BGO to move a model towards or away from a query, and the sweep that reads the effect.

Both start at the trained parameters, take T steps on one query, and are batched over queries by ``vmap``. ``sign`` +1
ascends the query's loss (unlearns it), -1 descends it. The unit of the step size is ``absolute``, the published one, or
``relative``: to first order, T steps change the query's own loss by ``step`` times itself.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tda.sequences import real_tokens
from tda.task import Examples, Params, Task, n_examples, take
from tda.tools.gradients import batch_of, example_gradient, flatten, over_examples, unflatten

SWEEP = 720  # positions at once (24 texts of 30 tokens, 9 images in 80 draws): the fastest, activations stay in cache
CLIP, BETA1, BETA2, EPSILON = 1.0, 0.9, 0.999, 1e-8  # AdamW of the EWC variant
DECAY = 0.01  # its weight decay, as in the first release
UNITS = ("relative", "absolute")


def natural_steps(
    task: Task,
    queries: Examples,
    sign: int,
    step: float,
    steps: int,
    unit: str,
    precondition: Callable[[Tensor], Tensor],
) -> tuple[Params, Tensor]:
    """``theta <- theta + sign eta P g(theta)``, T times, P fixed: parameters [B, ...] and eta [B], in relative units
    ``step l_q / (T g^T P g)`` of the first step. Raises ``ValueError`` for a query whose gradient is zero.
    """
    theta, own, gradient = _start(task, queries)
    for done in range(steps):
        g = gradient(theta)
        direction = precondition(g)
        if not done:
            eta = _step_sizes(own, (g * direction).sum(1), step, steps, unit)
        theta = theta + sign * eta.unsqueeze(1) * direction
    return unflatten(theta, task.params), eta


def ewc_steps(
    task: Task,
    queries: Examples,
    sign: int,
    step: float,
    steps: int,
    unit: str,
    fisher: Tensor,
    weight: float,
    released: bool,
) -> tuple[Params, Tensor]:
    """T AdamW steps on the query under an elastic penalty ``weight sum_j F_j (theta_j - theta0_j)^2``.

    With s = -sign: ``released`` minimises ``s (loss + penalty)``, so that ascent *rewards* distance from the trained
    model; otherwise ``s loss + penalty``, which restrains both directions. Returns parameters [B, ...] and AdamW's
    learning rate [B]; in relative units ``step l_q / (T |g|_1)``: its first step moves every parameter by the rate.
    """
    theta, own, gradient = _start(task, queries)
    origin, first, second = theta, torch.zeros_like(theta), torch.zeros_like(theta)
    for done in range(steps):
        g = gradient(theta)
        if not done:
            rate = _step_sizes(own, g.abs().sum(1), step, steps, unit)
        pull = 2 * weight * fisher * (theta - origin)
        g = -sign * (g + pull) if released else -sign * g + pull
        g = g * (CLIP / g.norm(dim=1, keepdim=True).clamp(min=CLIP))
        first = BETA1 * first + (1 - BETA1) * g
        second = BETA2 * second + (1 - BETA2) * g.square()
        update = (first / (1 - BETA1 ** (done + 1))) / ((second / (1 - BETA2 ** (done + 1))).sqrt() + EPSILON)
        theta = theta - rate.unsqueeze(1) * (update + DECAY * theta)
    return unflatten(theta, task.params), rate


def _start(task: Task, queries: Examples) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """B copies of the parameters [B, P], the queries' losses [B], and the gradient of each at its own copy."""
    per_query = over_examples(example_gradient(task), in_dims=(0, 0))
    origin = flatten({k: v.unsqueeze(0) for k, v in task.params.items()})
    with torch.no_grad():
        own = task.loss_fn(task.params, queries, "example")
    return origin.expand(len(own), -1), own, lambda theta: flatten(per_query(unflatten(theta, task.params), queries))


def _step_sizes(own: Tensor, slope: Tensor, step: float, steps: int, unit: str) -> Tensor:
    if not (slope > 0).all():
        raise ValueError(
            f"queries {torch.nonzero(~(slope > 0)).flatten().tolist()} of this batch have a gradient of zero (or not "
            "finite): there is no direction to move in. Leave them out, or attribute an earlier checkpoint."
        )
    return step * own / (steps * slope) if unit == "relative" else torch.full_like(own, step)


def sweep(task: Task, models: Params, train: Examples, tokens: int = SWEEP, reduction: str = "example") -> Tensor:
    """Losses [B, N] (or [B, N, T] of every token) of the documents under B models with a leading axis.

    One model after the other, over batches of at most ``tokens`` positions (and at least a document): three times
    faster on a CPU than one ``vmap`` over the models, whose activations leave the cache.
    """
    count, n = n_examples(models), n_examples(train)
    batches = [(rows, batch_of(take(train, rows))) for rows in _of_similar_length(_positions(task, train), tokens)]
    shape = (count, n) if reduction == "example" else (count, *train["input_ids"].shape)
    losses = torch.zeros(shape, dtype=next(iter(models.values())).dtype)
    with torch.no_grad():
        for b in range(count):
            params = {k: v[b] for k, v in models.items()}
            for rows, batch in batches:
                found = task.loss_fn(params, batch, reduction)
                place = losses[b] if reduction == "example" else losses[b, :, : found.shape[1]]
                place[rows] = found
    return losses


def _positions(task: Task, examples: Examples) -> np.ndarray:
    """How many positions the loss of each example has, [N]: real tokens of a text, draws of a denoiser, 1 otherwise."""
    draws = getattr(task.model, "main", None)
    return real_tokens(examples).sum(1).numpy() * (1 if draws is None else len(draws[0]))


def _of_similar_length(lengths: np.ndarray, tokens: int) -> list[np.ndarray]:
    """Rows, shortest first, in batches whose longest times their number is at most ``tokens``."""
    batches = [[]]
    for row in np.argsort(lengths, kind="stable"):
        if batches[-1] and (len(batches[-1]) + 1) * lengths[row] > tokens:
            batches.append([])
        batches[-1].append(row)
    return [np.array(rows) for rows in batches]
