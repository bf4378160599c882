"""Influence functions with any curvature matrix and any solver.

    score(q, i) = g_q^T (C + d)^-1 g_i

Koh and Liang (2017): removing document i from the mean training loss moves the parameters by ``H^-1 g_i / N``, and the
loss of q rises by ``g_q^T H^-1 g_i / N``; the constant 1/N is left out. Positive = training on i lowers the loss of q.
C stands for H, or for a matrix that is easier to invert and has no negative eigenvalues (:mod:`tda.curvature`):

- ``hessian``, ``ggn`` (small nets by their eigenvectors, any net by an iterative solver), ``block_ggn``;
- ``kfac``, ``ekfac``: the linear and convolution layers, the other parameters dropped or damped by their diagonal;
- ``diagonal``, ``empirical_fisher`` (through its Gram matrix), ``identity`` (gradient dot over 1 + d).

The damping d is ``damping`` times the mean eigenvalue of C: tr / P over the parameters that C covers, tr / N for the
empirical Fisher (only N of its eigenvalues can differ from zero), tr(GGN) / P for the Hessian; or ``damping`` itself
with ``unit="absolute"``.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import torch
from torch import Tensor

from tda.attribution.registry import method
from tda.curvature import exact, named, solvers
from tda.curvature.kronecker import UNTRACKED
from tda.output_loss import FISHERS
from tda.task import Examples, Task, n_examples
from tda.tools.cache import remembered
from tda.tools.door import entered
from tda.tools.gradients import CHUNK, blocks, matrix
from tda.tools.options import Count, NotNegative, Pattern, Positive, Whole, one_of
from tda.tools.summed import along, trajectory

# solver -> the curvatures it takes
SOLVERS = {
    "exact": named.CURVATURES,
    "cg": ("hessian", "ggn"),
    "pcg": ("hessian", "ggn"),
    "lissa": ("hessian", "ggn"),
    "arnoldi": ("hessian", "ggn"),
    "nystrom": ("hessian", "ggn"),
    "datainf": ("empirical_fisher",),
}


def solve(
    task: Task,
    train: Examples,
    v: Tensor,
    *,
    seed: int = 0,
    chunk: int = CHUNK,
    curvature: str = "ekfac",
    solver: str = "exact",
    fisher: str = "sampled",
    damping: float = 0.1,
    unit: str = "relative",
    indefinite: str = "refuse",
    layers: str = "",
    rest: str = "drop",
    iterations: int = 100,
    rank: int = 50,
    batch: int = 32,
    scale: float = 0.0,
    repeats: int = 1,
) -> Tensor:
    """``v (C + d)^-1`` for rows of ``v`` [B, P]; the options are those of :func:`attribute`."""
    if curvature not in named.CURVATURES:
        raise ValueError(f"influence: curvature={curvature!r}; one of {named.CURVATURES}.")
    if solver not in SOLVERS or curvature not in SOLVERS[solver]:
        allowed = {name: kinds for name, kinds in SOLVERS.items() if curvature in kinds}
        raise ValueError(
            f"influence: solver={solver!r} with curvature={curvature!r}; for this curvature one of {list(allowed)}, "
            f"and the solvers are {list(SOLVERS)}."
        )
    known = {"fisher": fisher, "layers": layers, "rest": rest, "seed": seed, "chunk": chunk}
    found = named.operator(curvature, task, train, dense=solver == "exact", **known)
    if solver == "datainf":
        groups, relative = exact.parameter_groups(task), unit == "relative"
        named.absolute(found, damping, unit)
        return solvers.datainf(found.rows, groups, v, damping, relative=relative).solution
    shift = named.absolute(found, damping, unit)
    if solver == "exact":
        return solvers.exact(found, v, shift, indefinite).solution
    run = {
        "cg": partial(solvers.cg, iterations=iterations),
        "pcg": partial(solvers.cg, iterations=iterations),
        "lissa": partial(
            solvers.lissa, iterations=iterations, batch=batch, scale=scale, repeats=repeats, seed=seed, every=iterations
        ),
        "arnoldi": partial(
            solvers.arnoldi, iterations=iterations, rank=rank, indefinite=indefinite, seed=seed, every=iterations
        ),
        "nystrom": partial(solvers.nystrom, rank=rank, seed=seed),
    }[solver]
    if solver == "pcg":
        run = partial(run, preconditioner=named.operator("ekfac", task, train, **known))
    return run(found, v, shift).solution


@remembered(2)
def _asked(task: Task, queries: Examples, chunk: int) -> Tensor:
    """The query gradients [Q, P], kept for the next damping."""
    return matrix(task, queries, chunk)


@method("influence", family="curvature", paper="Koh and Liang 2017", needs=("params", "outputs"), signed=True)
def attribute(
    task: Task,
    train: Examples,
    queries: Examples,
    *,
    seed: Whole = 0,
    chunk: Count = CHUNK,
    curvature: one_of(named.CURVATURES) = "ekfac",
    solver: one_of(SOLVERS) = "exact",
    fisher: one_of(FISHERS) = "sampled",
    damping: Positive = 0.1,
    unit: one_of(named.UNITS) = "relative",
    indefinite: one_of(named.INDEFINITE) = "refuse",
    layers: Pattern = "",
    rest: one_of(UNTRACKED) = "drop",
    iterations: Count = 100,
    rank: Count = 50,
    batch: Count = 32,
    scale: NotNegative = 0.0,
    repeats: Count = 1,
) -> np.ndarray:
    """``g_q^T (C + d)^-1 g_i`` for all pairs, [Q, N]; see the module's text for C and d.

    ``curvature`` one of :data:`tda.curvature.CURVATURES`; ``solver`` exact (eigenvectors), or for hessian and ggn cg,
    pcg (preconditioned by EK-FAC), lissa, arnoldi, nystrom, or for empirical_fisher datainf. ``fisher`` exact, sampled,
    empirical (kfac, ekfac, diagonal); ``layers`` a regex and ``rest`` drop, diagonal, refuse (kfac, ekfac); ``damping``
    in ``unit`` relative or absolute; ``indefinite`` refuse, keep, absolute, clip (exact, arnoldi). ``iterations`` (cg,
    pcg, lissa, arnoldi), ``rank`` (arnoldi, nystrom), ``batch``, ``scale`` (0: found), ``repeats`` (lissa). ``seed``:
    sampled labels, mini-batches, starting vectors, coordinates.

    Memory: (2 Q + chunk) x P x 4 bytes and the operator: 24 P^2 for dense matrices, 4 N P for the empirical Fisher, two
    float64 factors a layer for kfac and ekfac. Raises ``ValueError`` for other values, a damping that is not positive,
    an indefinite system (see ``indefinite``), a divergence, and a matrix that would not fit.
    """
    options = _options(locals())
    solution = solve(task, train, _asked(task, queries, chunk), **options)
    return torch.cat([solution @ block.T for _, block in blocks(task, train, chunk)], dim=1).numpy()


@method(
    "influence_trajectory",
    family="curvature",
    paper="Koh and Liang 2017",
    needs=("params", "checkpoints", "outputs"),
    signed=True,
)
def attribute_trajectory(
    task: Task,
    train: Examples,
    queries: Examples,
    *,
    seed: Whole = 0,
    chunk: Count = CHUNK,
    curvature: one_of(named.CURVATURES) = "ekfac",
    fisher: one_of(FISHERS) = "sampled",
    damping: Positive = 0.1,
    unit: one_of(named.UNITS) = "relative",
    layers: Pattern = "",
    rest: one_of(UNTRACKED) = "drop",
    checkpoints: Whole = 0,
) -> np.ndarray:
    """:func:`attribute` (exact solver) summed over ``checkpoints`` of the run (0: all), [Q, N], with their learning
    rates as weights and each query's scores scaled to unit mean magnitude (:func:`tda.tools.summed.along`).
    """
    options = _options(locals())
    parts = trajectory(task, checkpoints)
    return along([(attribute(part, train, queries, **options), weight) for part, weight in parts])


def _options(arguments: dict) -> dict:
    """A method's arguments without its data."""
    return {k: v for k, v in arguments.items() if k not in ("task", "train", "queries", "checkpoints")}


def self_influence(task: Task, train: Examples, examples: Examples | None = None, **options) -> np.ndarray:
    """``g_i^T (C + d)^-1 g_i`` of every example, [n]: how much it holds up its own loss; large for mislabelled ones.

    C comes from ``train``; ``examples`` are the training examples by default. ``options``: those of :func:`attribute`.
    """
    given = {"train": train, "examples": train if examples is None else examples}
    with entered(task, ("params",), **given) as (train, examples):
        found = np.empty(n_examples(examples), np.float32)
        for part, block in blocks(task, examples, options.get("chunk", CHUNK)):
            found[part] = (solve(task, train, block, **options) * block).sum(1).numpy()
        return found
