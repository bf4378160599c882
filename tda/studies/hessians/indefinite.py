"""One damped solve with the Hessian of a net too large for its eigenvectors, by LAPACK in place.

An eigendecomposition of P x P takes some 16 times as long as the LDL^T factorisation of the same matrix (Bunch and
Kaufman 1977), which needs no definiteness, serves one damping only, and reads and overwrites one triangle.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor
from torch.func import grad, jvp, vmap

from tda.curvature.exact import hessian
from tda.curvature.operators import finite
from tda.task import Examples, Params, Task, chunks, n_examples, tensors
from tda.tools.gradients import flatten
from tda.tools.memory_limit import require

ROWS = 64  # directions sent through the network at once: of 32, 64, 128 and 256 the fastest


def solve_hessian(task: Task, train: Examples, v: Tensor, damping: float) -> tuple[Tensor, float]:
    """``x = (H + damping)^-1 v`` for rows ``v`` [B, P], and the largest relative residual |(H + damping) x - v| / |v|.

    H in float64, indefinite or not; the residual is measured with Hessian-vector products, which share nothing with
    the factorisation. Memory: 8 P^2 bytes, overwritten in place, and the activations of all examples x :data:`ROWS`.
    Raises ``ValueError`` where that does not fit, for entries that are not finite, and for a matrix that is singular
    to the last digit.
    """
    size = sum(p.numel() for p in task.params.values())
    require(8.0 * size**2, f"the Hessian of {size} parameters", "Use tda.curvature.solvers.cg and a larger damping.")
    task, train = _double(task, train)
    lower = np.zeros((size, size), order="F")
    for start, columns in hessian_triangle(task, train):
        stop = start + len(columns)
        lower[size - columns.shape[1] :, start:stop] = finite(columns, "the Hessian").T
    lower[np.diag_indices(size)] += damping
    # a workspace of its choice makes LAPACK factorise and solve by blocks
    work = int(lapack.dsysv_lwork(size, lower=1)[0])
    *_, x, info = lapack.dsysv(lower, v.double().numpy().T, lwork=work, lower=1, overwrite_a=1)
    if info:
        raise ValueError(f"H + {damping:.3g} is singular (LAPACK dsysv: info {info}). Use another damping.")
    x = torch.from_numpy(np.ascontiguousarray(x.T))
    missed = hessian(task, train, n_examples(train)).matvec(x) + damping * x - v.double()
    return x.to(v.dtype), float((missed.norm(dim=1) / v.double().norm(dim=1)).max())


def hessian_triangle(task: Task, train: Examples) -> Iterator[tuple[int, Tensor]]:
    """The lower triangle of H: ``(start, columns [b, P - s])``, b columns from ``start`` on, rows from s <= start on.

    s is where the column's tensor begins. By forward over reverse in one tensor and those after it, so that nothing is
    sent through the network's part before it.
    """
    batch, at, start = tensors(train), task.params, 0
    for number, (name, tensor) in enumerate(at.items()):
        after = dict(list(at.items())[number:])

        def slope(moved: Tensor, name: str = name, after: Params = after) -> Params:
            return grad(lambda p: task.loss_fn(at | p, batch, "mean"))(after | {name: moved})

        def column(direction: Tensor, slope=slope, tensor: Tensor = tensor) -> Params:
            return jvp(slope, (tensor,), (direction.reshape(tensor.shape),))[1]

        for part in chunks(tensor.numel(), ROWS):
            unit = torch.zeros(part.stop - part.start, tensor.numel(), dtype=tensor.dtype)
            unit[torch.arange(len(unit)), torch.arange(part.start, part.stop)] = 1.0
            yield start + part.start, flatten(vmap(column)(unit)).detach()
        start += tensor.numel()


def _double(task: Task, train: Examples) -> tuple[Task, Examples]:
    params = {k: p.double() for k, p in task.params.items()}
    data = {k: x.double() if x.is_floating_point() else x for k, x in tensors(train).items()}
    return replace(task, params=params), data
