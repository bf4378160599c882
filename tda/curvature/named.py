"""Curvature operators by name, their means over checkpoints, and their damped inverses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tda.curvature import empirical
from tda.curvature.kronecker import UNTRACKED, diagonal, ekfac, kfac, mean, mean_kronecker
from tda.curvature.operators import Blocks, Dense, Diagonal, Dual, Operator, Spectral
from tda.curvature.second_derivatives import block_ggn, dense_ggn, dense_hessian, ggn, hessian
from tda.output_loss import FISHERS
from tda.task import Examples, Task, n_examples
from tda.tools.cache import remembered
from tda.tools.gradients import CHUNK
from tda.tools.memory_limit import require
from tda.tools.options import Count, Pattern, Whole, one_of, option

CURVATURES = ("hessian", "ggn", "block_ggn", "kfac", "ekfac", "diagonal", "empirical_fisher", "identity")
UNITS = ("relative", "absolute")
INDEFINITE = ("refuse", "keep", "absolute", "clip")
DENSE = 6  # hessian, ggn and block_ggn that are remembered, 8 P^2 bytes each if dense: the checkpoints of a small run


@dataclass(frozen=True, kw_only=True)
class CurvatureOptions:
    """Which curvature a method takes, as the arguments of :func:`operator` and :func:`averaged`."""

    seed: Whole = option(0, "of everything that is drawn: sampled labels, mini-batches, starting vectors, coordinates")
    chunk: Count = option(CHUNK, "examples whose gradients are formed together")
    curvature: one_of(CURVATURES) = option("ekfac", "the matrix")
    fisher: one_of(FISHERS) = option("sampled", "labels of the Fisher of kfac, ekfac and diagonal")
    layers: Pattern = option("", "a regex: the layers that kfac and ekfac cover")
    rest: one_of(UNTRACKED) = option("drop", "parameters outside them; dropped ones take no part in the scores")

    def arguments(self) -> dict:
        """All but ``curvature``."""
        return {name: getattr(self, name) for name in ("fisher", "layers", "rest", "seed", "chunk")}


def operator(
    curvature: str, task: Task, train: Examples, fisher: str = "sampled", layers: str = "", rest: str = "drop",
    dense: bool = True, seed: int = 0, chunk: int = CHUNK,
) -> Operator:  # fmt: skip
    """One of :data:`CURVATURES` at the task's parameters, remembered for the next call with the same arguments.

    ``fisher`` (exact, sampled, empirical): for kfac, ekfac and diagonal. ``layers``, ``rest``: for kfac and ekfac.
    ``dense``: hessian and ggn as matrices with eigenvectors (small nets), or matrix-free. ``seed``: of sampled labels.
    """
    if curvature in ("hessian", "ggn", "block_ggn"):
        return _second_derivatives(curvature, task, train, dense)
    if curvature in ("kfac", "ekfac"):
        return {"kfac": kfac, "ekfac": ekfac}[curvature](task, train, fisher, layers, rest, seed, chunk)
    if curvature == "diagonal":
        return diagonal(task, train, fisher, seed, chunk)
    if curvature == "empirical_fisher":
        return _dual(task, train, chunk)
    if curvature == "identity":
        return Diagonal(torch.ones(sum(p.numel() for p in task.params.values()), dtype=torch.float64))
    raise ValueError(f"curvature={curvature!r}; one of {CURVATURES}.")


@remembered(DENSE)
def _second_derivatives(curvature: str, task: Task, train: Examples, dense: bool) -> Operator:
    if curvature == "block_ggn":
        return block_ggn(task, train)
    return {"hessian": (hessian, dense_hessian), "ggn": (ggn, dense_ggn)}[curvature][dense](task, train)


@remembered()
def _dual(task: Task, train: Examples, chunk: int) -> Dual:
    _require_gradients(task, train, 1, "Use curvature='ekfac' or 'diagonal', which stream.")
    return Dual(empirical.gradients(task, train, chunk), empirical.gram(task, train, chunk))


def _require_gradients(task: Task, train: Examples, checkpoints: int, advice: str) -> None:
    width, itemsize = sum(p.numel() for p in task.params.values()), next(iter(task.params.values())).element_size()
    what = f"the gradients of {n_examples(train)} examples x {width} parameters at {checkpoints} checkpoints"
    require(float(itemsize * width * n_examples(train) * checkpoints), what, advice)


def averaged(
    curvature: str, tasks: Sequence[Task], train: Examples, fisher: str = "sampled", layers: str = "",
    rest: str = "drop", seed: int = 0, chunk: int = CHUNK,
) -> Spectral:  # fmt: skip
    """The mean of an :func:`operator` over ``tasks``, which differ in parameters (the checkpoints of a run).

    kfac: the Kronecker product of the mean factors. ekfac: its eigenvectors, and along them the mean of the curvature
    measured at each checkpoint (Bae et al. 2024). The empirical Fisher holds the gradients of all checkpoints.
    """
    if len(tasks) == 1 or curvature == "identity":
        return operator(curvature, tasks[0], train, fisher, layers, rest, seed=seed, chunk=chunk)
    if curvature in ("kfac", "ekfac"):
        return mean_kronecker(curvature, tasks, train, fisher, layers, rest, seed, chunk)
    if curvature == "empirical_fisher":
        advice = "Use more segments, so that each holds fewer checkpoints, or curvature='ekfac' or 'diagonal'."
        _require_gradients(tasks[0], train, len(tasks), advice)
        rows = torch.cat([empirical.gradients(task, train, chunk) for task in tasks])
        return Dual(rows, (rows @ rows.T).double())
    matrices = [operator(curvature, task, train, fisher, seed=seed, chunk=chunk) for task in tasks]
    if curvature == "diagonal":
        return Diagonal(mean(matrix.eigenvalues for matrix in matrices))
    if curvature == "block_ggn":
        blocks = matrices[0].blocks.items()
        means = {name: Dense(mean(matrix.blocks[name][1].matrix for matrix in matrices)) for name, _ in blocks}
        return Blocks(matrices[0].size, {name: (index, means[name]) for name, (index, _) in blocks})
    return Dense(mean(matrix.materialise() for matrix in matrices))


def absolute_damping(operator: Operator, damping: float, unit: str = "relative") -> float:
    """The number added to the eigenvalues: ``damping``, in units of the operator's ``scale`` if ``unit`` is relative.

    Raises ``ValueError`` for a damping that is not positive, and for an operator that is zero.
    """
    if unit not in UNITS:
        raise ValueError(f"unit={unit!r}; one of {UNITS}.")
    if not damping > 0:
        raise ValueError(
            f"damping={damping}; it must be positive: these matrices are singular. It counts in "
            f"{'units of the mean eigenvalue; try 0.1' if unit == 'relative' else 'absolute units'}."
        )
    if unit == "absolute":
        return float(damping)
    if not 0 < operator.scale < float("inf"):
        raise ValueError(
            f"the mean eigenvalue of the curvature is {operator.scale}: every gradient of the model vanishes, or is "
            f"not finite. Attribute an earlier checkpoint, or check the model's losses."
        )
    return float(damping) * operator.scale


def damped(values: Tensor, damping: float, indefinite: str = "refuse") -> Tensor:
    """``1 / (values + damping)``, with a policy for eigenvalues below ``-damping``.

    ``refuse``: a ``ValueError`` that names the smallest; ``keep``: the plain inverse of the indefinite matrix (what
    other libraries solve); ``absolute``: |values| in their place; ``clip``: zero in place of negative values.
    """
    if indefinite not in INDEFINITE:
        raise ValueError(f"indefinite={indefinite!r}; one of {INDEFINITE}.")
    if indefinite == "absolute":
        values = values.abs()
    elif indefinite == "clip":
        values = values.clamp(min=0.0)
    elif indefinite == "refuse" and not values.min() + damping > 0:
        raise ValueError(
            f"the curvature has the eigenvalue {float(values.min()):.3g} and the damping is {damping:.3g}: the damped "
            f"matrix is indefinite. Raise the damping above {-float(values.min()):.3g}, use curvature='ggn', or choose "
            f"indefinite='absolute', 'clip' or 'keep'."
        )
    return 1.0 / (values + damping)


def inverse(
    kind: str, task: Task, train: Examples, damping: float, chunk: int = CHUNK, unit: str = "relative",
    indefinite: str = "refuse", **options,
) -> Callable[[Tensor], Tensor]:  # fmt: skip
    """``apply(v [B, P]) -> v (C + damping)^-1``, [B, P], with C an :func:`operator` and its ``options``.

    A parameter that the operator leaves out (``rest="drop"``) is zero in the result.
    """
    curvature = operator(kind, task, train, chunk=chunk, **options)
    if not isinstance(curvature, Spectral):
        raise ValueError(f"{kind} without eigenvectors has no closed inverse; use dense=True or tda.curvature.solvers.")
    shift = absolute_damping(curvature, damping, unit)
    return lambda v: curvature.function(lambda w: damped(w, shift, indefinite), v)
