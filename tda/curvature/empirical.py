"""The empirical Fisher and its damped inverse in three sizes.

With g_i the gradient of document i's loss, G [N, P] their matrix and F = G^T G / N the empirical Fisher:

- ``none``: P = 1;
- ``diagonal``: P = 1 / (diag F + damping * mean(diag F));
- ``full``: P = (F + delta)^-1 with delta = damping * tr(F) / N, through the Gram matrix K = G G^T [N, N] (Woodbury):

      P v = (v - G^T (K + N delta)^-1 G v) / delta,        g_q^T P G^T = N g_q^T G^T (K + N delta)^-1.

F equals the Gauss-Newton matrix only for a model that fits its data in distribution (Kunstner et al. 2019).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from tda.task import Examples, Task, n_examples
from tda.tools.cache import remembered
from tda.tools.gradients import CHUNK, blocks, dot_products, matrix, swept

KINDS = ("none", "diagonal", "full")


@remembered()
def diagonal(task: Task, train: Examples, chunk: int = CHUNK) -> Tensor:
    """``F_j = (1/N) sum_i (d l_i / d theta_j)^2``, [P]. Streams. Refuses a Fisher that is zero or not finite."""
    return _usable(sum(block.square().sum(0) for _, block in blocks(task, train, chunk)) / n_examples(train))


@remembered()
def gradients(task: Task, train: Examples, chunk: int = CHUNK) -> Tensor:
    """All document gradients G, [N, P]: the price of the full Fisher."""
    width, dtype = sum(p.numel() for p in task.params.values()), next(iter(task.params.values())).dtype
    stored = torch.empty(n_examples(train), width, dtype=dtype)
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
    """g_q^T G^T, [Q, N] float64, kept for other dampings."""
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
        return swept(task, train, lambda block: block @ scaled.T, chunk).T.numpy()
    products, (factor, _) = cross(task, train, queries, chunk), _damped(gram(task, train, chunk), damping)
    return (len(factor) * torch.cholesky_solve(products.T, factor).T).numpy()
