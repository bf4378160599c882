"""The empirical Fisher, its damped inverse in three sizes, and influence with it: the linear limit of BGO.

With g_i the gradient of document i's loss, G [N, P] their matrix and F = G^T G / N the empirical Fisher:

- ``none``: P = 1;
- ``diagonal``: P = 1 / (diag F + damping * mean(diag F));
- ``full``: P = (F + delta)^-1 with delta = damping * tr(F) / N, the mean of the N eigenvalues that can differ from
  zero. F has a row per parameter, but its inverse only needs the Gram matrix K = G G^T [N, N] (Woodbury):

      P v = (v - G^T (K + N delta)^-1 G v) / delta,        g_q^T P G^T = N g_q^T G^T (K + N delta)^-1.

The empirical Fisher squares gradients of the observed labels; it equals the Gauss-Newton matrix only for a model that
fits its data in distribution (Kunstner et al. 2019), which a small language model does not. BGO's released code uses
its diagonal.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from tda.attribution.gradients import CHUNK, blocks, dot_products, matrix
from tda.attribution.memory import remembered
from tda.attribution.options import Count, Positive, Whole, one_of
from tda.attribution.registry import method
from tda.task import Examples, Task, n_examples

KINDS = ("none", "diagonal", "full")


@remembered()
def diagonal(task: Task, train: Examples, chunk: int = CHUNK) -> Tensor:
    """``F_j = (1/N) sum_i (d l_i / d theta_j)^2``, [P]. Streams: chunk x P x 4 bytes. Refuses a Fisher that is zero or
    not finite.
    """
    fisher = sum(block.square().sum(0) for _, block in blocks(task, train, chunk)) / n_examples(train)
    return _usable(fisher)


@remembered()
def gradients(task: Task, train: Examples, chunk: int = CHUNK) -> Tensor:
    """All document gradients G, [N, P] float32: N x P x 4 bytes, the price of the full Fisher."""
    width = sum(p.numel() for p in task.params.values())
    stored = torch.empty(n_examples(train), width, dtype=next(iter(task.params.values())).dtype)
    for part, block in blocks(task, train, chunk):
        stored[part] = block
    return stored


@remembered(8)
def gram(task: Task, train: Examples, chunk: int = CHUNK) -> Tensor:
    """K = G G^T, [N, N] float64, the dual of the empirical Fisher."""
    stored = gradients(task, train, chunk)
    dual = (stored @ stored.T).double()
    _usable(dual.diagonal())
    return dual


@remembered(8)
def cross(task: Task, train: Examples, queries: Examples, chunk: int = CHUNK) -> Tensor:
    """g_q^T G^T, [Q, N] float64: with :func:`gram` all that the linear limit needs, so other dampings cost nothing."""
    return (matrix(task, queries, chunk) @ gradients(task, train, chunk).T).double()


def _usable(fisher: Tensor) -> Tensor:
    if not fisher.isfinite().all():
        raise ValueError("the empirical Fisher is not finite: some training gradient is not. Check the model's losses.")
    if not fisher.mean() > 0:
        raise ValueError(
            "the empirical Fisher is zero: every training gradient vanishes. Attribute an earlier checkpoint."
        )
    return fisher


def inverse(kind: str, task: Task, train: Examples, damping: float, chunk: int = CHUNK) -> Callable[[Tensor], Tensor]:
    """``apply(v [B, P]) -> v P``, [B, P], for one of :data:`KINDS`."""
    if kind == "none":
        return lambda v: v
    if kind == "diagonal":
        fisher = diagonal(task, train, chunk)
        scale = 1.0 / (fisher + damping * fisher.mean())
        return lambda v: v * scale
    stored, (factor, delta) = gradients(task, train, chunk), _damped(gram(task, train, chunk), damping)

    def apply(v: Tensor) -> Tensor:
        weights = torch.cholesky_solve((v @ stored.T).double().T, factor).T.to(v.dtype)
        return (v - weights @ stored) / delta

    return apply


def _damped(dual: Tensor, damping: float) -> tuple[Tensor, float]:
    """Cholesky factor of K + N delta, and delta."""
    n = len(dual)
    delta = damping * float(dual.trace()) / n**2
    return torch.linalg.cholesky(dual + n * delta * torch.eye(n, dtype=dual.dtype)), delta


def linear_scores(
    kind: str, task: Task, train: Examples, queries: Examples, damping: float, chunk: int = CHUNK
) -> np.ndarray:
    """``g_q^T P g_i`` for all pairs, [Q, N]: what a BGO score tends to, per unit of step, as the step goes to zero."""
    if kind == "none":
        return dot_products(task, train, queries, chunk).numpy()
    if kind == "diagonal":
        scaled = inverse(kind, task, train, damping, chunk)(matrix(task, queries, chunk))
        return torch.cat([scaled @ block.T for _, block in blocks(task, train, chunk)], dim=1).numpy()
    products, (factor, _) = cross(task, train, queries, chunk), _damped(gram(task, train, chunk), damping)
    return (len(factor) * torch.cholesky_solve(products.T, factor).T).numpy()


@remembered(4)
def trajectory(task: Task, checkpoints: int) -> list[tuple[Task, float]]:
    """``[(task at a checkpoint, its weight), ...]``: ``checkpoints`` of the recorded ones, evenly spaced and ending
    with the last (0: all).

    The weight is the sum of the learning rates of the steps since the previous checkpoint *used*, so that a sum over
    fewer checkpoints approximates the same integral along training.
    """
    known = () if task.run is None else task.run.checkpoints
    if not known:
        raise ValueError(
            f"the task {task.name!r} has no checkpoints; train with training.checkpoints, or use one model."
        )
    count = checkpoints or len(known)
    if not 0 < count <= len(known) or count != int(count):
        raise ValueError(
            f"checkpoints={checkpoints}; the run recorded {len(known)}. Use 0 for all, or 1 to {len(known)}."
        )
    last = [round((i + 1) * len(known) / count) - 1 for i in range(count)]
    starts = [0, *(place + 1 for place in last[:-1])]
    weights = [sum(c.lr_sum for c in known[a : b + 1]) for a, b in zip(starts, last, strict=True)]
    return [(replace(task, params=known[place].params), w) for place, w in zip(last, weights, strict=True)]


def along(parts: list[tuple[np.ndarray, float]]) -> np.ndarray:
    """Weighted sum of score matrices [Q, N], each query's scores first scaled to unit mean magnitude.

    The inverse Fisher grows as the gradients shrink, so the raw scores of late checkpoints would drown the early ones,
    where most of the learning happens. Scaling query by query keeps a query's scores independent of what else is asked.
    """
    return sum(weight * unit_scale(scores) for scores, weight in parts)


def unit_scale(scores: np.ndarray) -> np.ndarray:
    """Scores [Q, N] with mean magnitude 1 in every row (rows of zeros stay)."""
    return scores / np.maximum(np.abs(scores).mean(1, keepdims=True), np.finfo(np.float32).tiny)


@method("fisher_influence", family="curvature", paper="Koh and Liang 2017", needs=("params",), signed=True)
def attribute(
    task: Task,
    train: Examples,
    queries: Examples,
    *,
    seed: Whole = 0,
    chunk: Count = CHUNK,
    preconditioner: one_of(KINDS) = "full",
    damping: Positive = 0.1,
) -> np.ndarray:
    """Influence with the empirical Fisher as the Hessian, ``g_q^T P g_i``, [Q, N]; see the module's text for P.

    This is the small-step limit of BGO with the same preconditioner, without its sweeps: one gradient per document,
    shared by all queries. Memory: chunk x P x 4 bytes (diagonal), N x P x 4 bytes (full). No randomness.
    """
    return linear_scores(preconditioner, task, train, queries, damping, chunk)


@method(
    "fisher_influence_trajectory",
    family="curvature",
    paper="Koh and Liang 2017",
    needs=("params", "checkpoints"),
    signed=True,
)
def attribute_trajectory(
    task: Task,
    train: Examples,
    queries: Examples,
    *,
    seed: Whole = 0,
    chunk: Count = CHUNK,
    preconditioner: one_of(KINDS) = "full",
    damping: Positive = 0.1,
    checkpoints: Whole = 0,
) -> np.ndarray:
    """:func:`attribute` summed over checkpoints (0: all) with their learning rates as weights, [Q, N]; see
    :func:`along`.
    """
    return along(
        [
            (linear_scores(preconditioner, part, train, queries, damping, chunk), weight)
            for part, weight in trajectory(task, checkpoints)
        ]
    )
