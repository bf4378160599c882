"""Influence functions with any curvature matrix and any solver.

    score(q, i) = g_q^T (C + d)^-1 g_i

Removing document i from the mean training loss raises the loss of q by ``g_q^T H^-1 g_i / N`` (Koh and Liang 2017; the
constant 1/N is left out); positive = training on i lowers the loss of q. C is H or another matrix
(:func:`tda.curvature.operator`). d is ``damping`` times its mean eigenvalue (over the parameters that C covers; tr / N
for the empirical Fisher; that of the Gauss-Newton matrix for the Hessian), or ``damping`` itself.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from tda.attribution.registry import method
from tda.curvature import empirical, named, solvers
from tda.curvature.second_derivatives import parameter_groups
from tda.task import Examples, Task, n_examples
from tda.tools.cache import remembered
from tda.tools.door import entered
from tda.tools.gradients import CHUNK, blocks, matrix, swept
from tda.tools.options import Count, NotNegative, Positive, Whole, one_of, option, read

ITERATIVE = {  # and the options that each reads
    "cg": ("iterations",),
    "pcg": ("iterations",),
    "lissa": ("iterations", "batch", "scale", "repeats", "seed"),
    "arnoldi": ("iterations", "rank", "indefinite", "seed"),
    "nystrom": ("rank", "seed"),
}
SOLVERS = {  # and the curvatures that each takes
    "exact": named.CURVATURES, **dict.fromkeys(ITERATIVE, ("hessian", "ggn")), "datainf": ("empirical_fisher",),
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Options(named.CurvatureOptions):
    """A curvature C, its damping d, and how ``(C + d) x = v`` is solved."""

    solver: one_of(SOLVERS) = option("exact", "exact: by eigenvectors; pcg: cg preconditioned by EK-FAC")
    damping: Positive = option(0.1, "d, in unit")
    unit: one_of(named.UNITS) = option("relative", "d in units of the mean eigenvalue of C, or d itself")
    indefinite: one_of(named.INDEFINITE) = option("refuse", "eigenvalues below -d (solvers exact, arnoldi)")
    iterations: Count = option(100, "of cg, pcg, lissa, arnoldi")
    rank: Count = option(50, "of arnoldi, nystrom")
    batch: Count = option(32, "of lissa's mini-batches")
    scale: NotNegative = option(0.0, "of lissa; 0: found from mini-batches")
    repeats: Count = option(1, "runs of lissa that are averaged")

    def __post_init__(self) -> None:
        if self.curvature not in SOLVERS[self.solver]:
            fitting = [name for name, curvatures in SOLVERS.items() if self.curvature in curvatures]
            raise ValueError(
                f"influence: solver={self.solver!r} with curvature={self.curvature!r}; for this curvature one of "
                f"{fitting}, and the solvers are {list(SOLVERS)}."
            )


def solve(task: Task, train: Examples, v: Tensor, options: Options) -> Tensor:
    """``v (C + d)^-1`` for rows of ``v`` [B, P]."""
    dense = options.solver == "exact"
    curvature = named.operator(options.curvature, task, train, dense=dense, **options.arguments())
    damping = named.absolute_damping(curvature, options.damping, options.unit)
    if dense:
        return curvature.function(lambda w: named.damped(w, damping, options.indefinite), v)
    if options.solver == "datainf":  # which counts the damping in units of each layer
        relative = options.unit == "relative"
        return solvers.datainf(curvature.rows, parameter_groups(task), v, options.damping, relative=relative)
    given = {name: getattr(options, name) for name in ITERATIVE[options.solver]}
    if options.solver == "pcg":
        given["preconditioner"] = named.operator("ekfac", task, train, **options.arguments())
    if options.solver == "lissa":
        given["every"] = options.iterations  # only the end is read
    solver = solvers.cg if options.solver == "pcg" else getattr(solvers, options.solver)
    return solvers.last(solver(curvature, v, damping, **given)).solution()


@remembered(2)
def query_gradients(task: Task, queries: Examples, chunk: int) -> Tensor:
    """The gradients of the queries' losses [Q, P], kept for the next damping."""
    return matrix(task, queries, chunk)


@method("influence", family="curvature", paper="Koh and Liang 2017", needs=("params", "outputs"), signed=True)
def attribute(task: Task, train: Examples, queries: Examples, options: Options) -> np.ndarray:
    """``g_q^T (C + d)^-1 g_i`` for all pairs, [Q, N].

    Memory: (2 Q + chunk) x P x 4 bytes and the operator: 24 P^2 for dense matrices, 4 N P for the empirical Fisher, two
    float64 factors a layer for kfac and ekfac. Raises ``ValueError`` for a solver that does not take the curvature, an
    indefinite system (see ``indefinite``), a divergence, and a matrix that would not fit.
    """
    solution = solve(task, train, query_gradients(task, queries, options.chunk), options)
    return swept(task, train, lambda block: block @ solution.T, options.chunk).T.numpy()


def self_influence(task: Task, train: Examples, examples: Examples | None = None, **options) -> np.ndarray:
    """``g_i^T (C + d)^-1 g_i`` of every example, [n]: how much it holds up its own loss; large for mislabelled ones.

    C comes from ``train``; ``examples``: ``train`` by default. ``options``: those of :func:`attribute`.
    """
    chosen = read("influence", Options, options)
    given = {"train": train, "examples": train if examples is None else examples}
    with entered(task, ("params",), **given) as (train, examples):
        scores = np.empty(n_examples(examples), np.float32)
        for part, block in blocks(task, examples, chosen.chunk):
            scores[part] = (solve(task, train, block, chosen) * block).sum(1).numpy()
        return scores


@method("fisher_influence", family="curvature", paper="Koh and Liang 2017", needs=("params",), signed=True)
def attribute_fisher(
    task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Count = CHUNK,
    preconditioner: one_of(empirical.KINDS) = "full", damping: Positive = 0.1,
) -> np.ndarray:  # fmt: skip
    """``g_q^T P g_i``, [Q, N], with P of :mod:`tda.curvature.empirical`: the small-step limit of BGO.
    Memory: chunk x P x 4 bytes (diagonal), N x P x 4 bytes (full).
    """
    return empirical.linear_scores(preconditioner, task, train, queries, damping, chunk)
