"""The mean of a curvature matrix over several checkpoints of a run, as one spectral operator."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from tda.curvature import empirical
from tda.curvature.kronecker import factors, in_factors, measured
from tda.curvature.named import CURVATURES, operator
from tda.curvature.operators import Blocks, Dense, Diagonal, Dual, Spectral
from tda.task import Examples, Task, n_examples
from tda.tools.gradients import CHUNK
from tda.tools.memory_limit import require


def averaged(
    curvature: str,
    tasks: Sequence[Task],
    train: Examples,
    fisher: str = "sampled",
    layers: str = "",
    rest: str = "drop",
    seed: int = 0,
    chunk: int = CHUNK,
) -> Spectral:
    """The mean of ``curvature`` (one of :data:`tda.curvature.CURVATURES`) over ``tasks``, which differ in parameters.

    hessian, ggn, block_ggn, diagonal, empirical_fisher: the mean matrix. kfac: the Kronecker product of the mean
    factors. ekfac: its eigenvectors, and along them the mean of the curvature measured at each checkpoint (Bae et al.
    2024). Options as in :func:`tda.curvature.operator`. Memory: that of one operator (of the dense ones: one a
    checkpoint, remembered); the empirical Fisher holds the gradients of all checkpoints.
    """
    if curvature not in CURVATURES:
        raise ValueError(f"curvature={curvature!r}; one of {CURVATURES}.")
    if len(tasks) == 1 or curvature == "identity":
        return operator(curvature, tasks[0], train, fisher=fisher, layers=layers, rest=rest, seed=seed, chunk=chunk)
    if curvature in ("kfac", "ekfac"):
        return _kronecker(curvature, tasks, train, fisher, layers, rest, seed, chunk)
    if curvature == "empirical_fisher":
        rows = _rows(tasks, train, chunk)
        return Dual(rows, (rows @ rows.T).double())
    each = [operator(curvature, task, train, fisher=fisher, seed=seed, chunk=chunk) for task in tasks]
    if curvature == "diagonal":
        return Diagonal(_mean(one.eigenvalues for one in each))
    if curvature == "block_ggn":
        first = each[0]
        mean = {name: Dense(_mean(one.blocks[name][1].matrix for one in each)) for name in first.blocks}
        return Blocks(first.size, {name: (index, mean[name]) for name, (index, _) in first.blocks.items()})
    return Dense(_mean(one.materialise() for one in each))


def _kronecker(curvature, tasks, train, fisher, layers, rest, seed, chunk) -> Blocks:
    each = [factors(task, train, fisher, layers, seed, chunk) for task in tasks]
    known = {name: tuple(_mean(one[name][side] for one in each) for side in (0, 1)) for name in each[0]}
    bases = [in_factors(task, train, known, fisher, layers, rest, seed, chunk) for task in tasks]
    if curvature == "kfac":  # they differ where no layer is, if that is kept
        return bases[0].with_eigenvalues(_mean(base.eigenvalues for base in bases))
    pairs = zip(bases, tasks, strict=True)
    return bases[0].with_eigenvalues(
        _mean(measured(base, task, train, fisher, layers, seed, chunk) for base, task in pairs)
    )


def _rows(tasks: Sequence[Task], train: Examples, chunk: int) -> Tensor:
    n, width = n_examples(train), sum(p.numel() for p in tasks[0].params.values())
    require(
        4.0 * width * n * len(tasks),
        f"the gradients of {n} examples x {width} parameters at {len(tasks)} checkpoints",
        "Use more segments, so that each holds fewer checkpoints, or curvature='ekfac' or 'diagonal', which stream.",
    )
    return torch.cat([empirical.gradients(task, train, chunk) for task in tasks])


def _mean(values: Iterable[Tensor]) -> Tensor:
    values = list(values)
    return sum(values) / len(values)
