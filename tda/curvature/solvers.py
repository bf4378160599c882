"""Solvers of ``(C + damping) x = v`` from products with C alone.

Every iterative solver takes an operator, right-hand sides ``v`` [B, P] and an absolute ``damping``, and yields a
:class:`Step` after every iteration; :func:`last` runs it to its end. CG, LiSSA and the Neumann series that it samples
refuse an indefinite system: they return a number there, and it means nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from tda.curvature.named import damped
from tda.curvature.operators import Blocks, Operator, Spectral
from tda.curvature.second_derivatives import OverData
from tda.task import n_examples


class Step(NamedTuple):
    """Where a solver stands: ``solution()`` [B, P]; ``hvps``, products with C over the *whole* data so far, per
    right-hand side; ``residual``, the mean over B of |(C + damping) x - v| / |v|, where the solver knows it.
    """

    hvps: float
    solution: Callable[[], Tensor]
    residual: float = math.nan


def last(steps: Iterator[Any]) -> Any:
    """The last of the steps; the others are not kept."""
    for step in steps:
        end = step
    return end


def cg(
    operator: Operator, v: Tensor, damping: float, *, iterations: int = 100, tolerance: float = 1e-6,
    preconditioner: Spectral | None = None,
) -> Iterator[Step]:  # fmt: skip
    """Conjugate gradients, all right-hand sides side by side, until every relative residual is below ``tolerance``.

    The damped inverse of a ``preconditioner`` (parameters that it leaves out count as eigenvalue 0) turns CG into PCG.
    Raises ``ValueError`` on a direction of negative curvature.
    """
    sizes = v.norm(dim=1)
    scale = torch.where(sizes > 0, sizes, torch.ones_like(sizes))

    def preconditioned(r: Tensor) -> Tensor:
        if preconditioner is None:
            return r
        z = preconditioner.function(lambda w: 1.0 / (w + damping), r)
        return torch.where(preconditioner.covered, z, r / damping) if isinstance(preconditioner, Blocks) else z

    x, r = torch.zeros_like(v), v.clone()
    z = preconditioned(r)
    p, rz = z.clone(), (r * z).sum(1)
    yield Step(0, lambda x=x: x, 1.0)
    for step in range(1, iterations + 1):
        moved = operator.matvec(p) + damping * p
        curvature, length = (p * moved).sum(1), (p * p).sum(1)
        active = r.norm(dim=1) > tolerance * sizes
        if (active & (curvature <= 0)).any():
            worst = float((curvature / length.clamp(min=1e-300))[active].min())
            raise ValueError(
                f"CG met a direction of curvature {worst:.3g} at damping {damping:.3g}: the matrix is indefinite, and "
                f"CG has no solution there. Raise the damping by more than {-worst:.3g}, use curvature='ggn', or "
                f"solver='exact' with indefinite='absolute'."
            )
        alpha = torch.where(active, rz / curvature.where(active, torch.ones_like(rz)), torch.zeros_like(rz))
        x, r = x + alpha[:, None] * p, r - alpha[:, None] * moved
        z = preconditioned(r)
        new = (r * z).sum(1)
        beta = torch.where(active, new / rz.where(active, torch.ones_like(rz)), torch.zeros_like(rz))
        p, rz = z + beta[:, None] * p, new
        relative = r.norm(dim=1) / scale
        yield Step(step, lambda x=x: x, float(relative.mean()))
        if (relative <= tolerance).all():
            break


def lissa(
    operator: OverData, v: Tensor, damping: float, *, iterations: int = 500, batch: int = 32, scale: float = 0.0,
    repeats: int = 1, seed: int = 0, every: int = 25,
) -> Iterator[Step]:  # fmt: skip
    """LiSSA (Agarwal et al. 2017): ``x <- v + x - (C_B x + damping x) / scale``, answer ``x / scale``.

    C_B is the curvature of a seeded mini-batch of ``batch`` examples; ``repeats`` independent runs are averaged. It
    needs 0 <= C_B + damping < 2 scale; ``scale`` 0 takes the largest of 8 mini-batches' top eigenvalues, times 1.5,
    plus the damping. ``every`` so many iterations a step is yielded, and an answer above 2 |v| / damping, which proves
    divergence, is refused with the scale that would do.
    """
    rng, n = np.random.default_rng(seed), n_examples(operator.train)
    batch = min(batch, n)

    def draw() -> OverData:
        return operator.subset(np.sort(rng.choice(n, batch, replace=False)))

    def safe_scale() -> float:
        return 1.5 * max(largest(draw(), seed) for _ in range(8)) + damping

    hvps = 0.0
    if not scale > 0:
        scale, hvps = safe_scale(), 8 * POWER_STEPS * batch / n
    runs, bound = [v.clone() for _ in range(repeats)], 2.0 * v.norm(dim=1) / damping
    for step in range(1, iterations + 1):
        for i, x in enumerate(runs):
            runs[i] = v + x - (draw().matvec(x) + damping * x) / scale
        hvps += repeats * batch / n
        if step % every == 0 or step == iterations:
            if not all((x.norm(dim=1) / scale <= bound).all() for x in runs):
                top = safe_scale()
                raise ValueError(
                    f"LiSSA diverged by step {step}: scale={scale:.3g} is too small for mini-batches of {batch}, or "
                    f"the matrix is indefinite. Use scale={top:.3g} or more (their largest eigenvalue is near "
                    f"{(top - damping) / 1.5:.3g}), larger batches, or more damping; a 'ggn' is never indefinite."
                )
            yield Step(hvps, lambda: sum(runs) / (repeats * scale))


POWER_STEPS = 15


def largest(operator: Operator, seed: int = 0) -> float:
    """The largest magnitude of an eigenvalue, from below, by :data:`POWER_STEPS` power iterations."""
    x = torch.randn(1, operator.size, generator=torch.Generator().manual_seed(seed)).to(operator.dtype)
    for _ in range(POWER_STEPS):
        moved = operator.matvec(x / x.norm())
        x = moved if moved.norm() > 0 else x
    return float(moved.norm())


def lanczos(operator: Operator, steps: int, seed: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """After every product ``(Q [k, P], diagonal [k], off-diagonal [k - 1])`` with Q C Q^T tridiagonal, k <= ``steps``,
    from a seeded Gaussian vector; orthogonalised fully, twice. Ends early where the Krylov space is exhausted.
    """
    start = torch.randn(operator.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rows, diagonal, off = [start / start.norm()], [], []
    for _ in range(min(steps, operator.size)):
        moved = operator.matvec(rows[-1].unsqueeze(0).to(operator.dtype))[0].double()
        diagonal.append(moved @ rows[-1])
        basis = torch.stack(rows)
        yield basis, torch.stack(diagonal), torch.stack(off) if off else start.new_zeros(0)
        for _ in range(2):
            moved = moved - (basis @ moved) @ basis
        length = moved.norm()
        if length <= 1e-7 * max(abs(d) for d in diagonal):
            break
        off.append(length)
        rows.append(moved / length)


def arnoldi(
    operator: Operator, v: Tensor, damping: float, *, iterations: int = 50, rank: int = 0, complement: bool = False,
    indefinite: str = "refuse", seed: int = 0,
) -> Iterator[Step]:  # fmt: skip
    """Arnoldi influence (Schioppa et al. 2022): the ``rank`` Ritz pairs of largest magnitude (0: all) of a Krylov space
    of ``iterations`` products. What they do not span is dropped, as published, or divided by the damping
    (``complement=True``).
    """

    def answer(basis: Tensor, diagonal: Tensor, off: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(tridiagonal(diagonal, off))
        best = values.abs().argsort(descending=True)[: rank or len(values)]
        ritz, inverse = (vectors[:, best].T @ basis).to(v.dtype), damped(values[best], damping, indefinite)
        if complement:
            return v / damping + (v @ ritz.T * (inverse - 1.0 / damping).to(v.dtype)) @ ritz
        return (v @ ritz.T * inverse.to(v.dtype)) @ ritz

    for space in lanczos(operator, iterations, seed):
        yield Step(len(space[0]), lambda space=space: answer(*space))


def tridiagonal(diagonal: Tensor, off: Tensor) -> Tensor:
    """The symmetric matrix [k, k] with this ``diagonal`` [k] and ``off``-diagonal [k - 1]."""
    return torch.diag(diagonal) + torch.diag(off, 1) + torch.diag(off, -1)


def nystrom(operator: Operator, v: Tensor, damping: float, *, rank: int = 50, seed: int = 0) -> Iterator[Step]:
    """Nystroem (Hataya and Yamada 2023), in one step: C is replaced by ``C_K^T C_KK^-1 C_K`` on ``rank`` seeded
    coordinates K: ``x = v / d - C_K^T (C_KK + C_K C_K^T / d)^-1 C_K v / d^2`` with the damping d. A C_KK with negative
    eigenvalues is refused.
    """
    rng, rank = np.random.default_rng(seed), min(rank, operator.size)
    chosen = torch.from_numpy(np.sort(rng.choice(operator.size, rank, replace=False)))
    unit = torch.zeros(rank, operator.size, dtype=operator.dtype)
    unit[torch.arange(rank), chosen] = 1.0
    columns = operator.matvec(unit).double()
    middle = (columns[:, chosen] + columns[:, chosen].T) / 2
    smallest, size = float(torch.linalg.eigvalsh(middle)[0]), float(middle.abs().max())
    if smallest < -1e-4 * size:
        raise ValueError(
            f"Nystroem: the sampled part of the curvature has the eigenvalue {smallest:.3g}; the method needs a matrix "
            f"without negative ones. Use curvature='ggn'."
        )
    inner = torch.linalg.pinv(middle + columns @ columns.T / damping, hermitian=True)
    x = v.double() / damping - (v.double() @ columns.T) @ inner @ columns / damping**2
    yield Step(rank, lambda: x.to(v.dtype))


def datainf(rows: Tensor, groups: dict[str, Tensor], v: Tensor, damping: float, *, relative: bool = True) -> Tensor:
    """DataInf (Kwon et al. 2024): the mean of inverses in place of the inverse of the mean; for each layer, with g_i
    its part of the gradient of example i (``rows`` [N, P], ``groups`` {layer: positions}),

        x = (1 / d) (v - (1/N) sum_i g_i (g_i^T v) / (d + |g_i|^2)),      d = damping * mean_i |g_i|^2 / P_layer

    (``relative=False``: d = damping).
    """
    n, x = len(rows), torch.empty_like(v)
    for name, index in groups.items():
        part, sides = rows[:, index], v[:, index]
        squares = part.square().sum(1)
        shift = damping * float(squares.mean()) / len(index) if relative else damping
        if not shift > 0:
            raise ValueError(f"DataInf: every gradient of {name!r} vanishes; there is nothing to damp it by.")
        x[:, index] = (sides - ((sides @ part.T) / (shift + squares)) @ part / n) / shift
    return x
