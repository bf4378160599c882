"""The ladder of *Better Hessians Matter*: one task's curvature matrices, from the Hessian down to none, and what each
inverse answers.

With g the gradients and C^ the matrix of a rung, the scores at damping d are ``g_q^T (C^ + d)^-1 g_i``, and the inverse
error and its angle, over training gradients g and with the damping ``decay`` that belongs to the objective:

    back = (H + decay) (C^ + d)^-1 g,       E = mean |back - g|^2 / |g|^2,       angle = mean 1 - cos(back, g)^2

:func:`build_rungs` makes the matrices and :func:`measure_rungs` inverts them; both are for nets whose matrices can be
decomposed. :func:`measure_large_hessian` is for a net whose Hessian is too large for that.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tda.curvature.exact import dense_hessian, hessian
from tda.curvature.kronecker import diagonal, ekfac, kfac
from tda.curvature.operators import Diagonal, Spectral
from tda.curvature.solvers import cg, lanczos
from tda.studies.hessians.basis import in_basis
from tda.studies.hessians.indefinite import solve_hessian
from tda.studies.hessians.spanned import spanned_ggn
from tda.task import Examples, Task, n_examples
from tda.tools.gradients import matrix

MAGNITUDES = "Hessian, magnitudes"
RUNGS = (
    "Hessian", MAGNITUDES, "Gauss-Newton", "blocks", "right eigenvalues", "EK-FAC", "K-FAC", "diagonal", "identity"
)  # fmt: skip
PROBES = 48  # training gradients over which the error of an inverse is measured
CUTOFF = 1e-4  # magnitude of an eigenvalue from which on the pseudo-inverse inverts it
LANCZOS = 80  # products in search of the smallest eigenvalue
MARGIN = 1.1  # of the most negative eigenvalue found, above which a damping is trusted to make H definite
TOLERANCE = 1e-5  # relative residual of CG; the Hessian-vector products are float32
PRODUCTS = 2000  # with H, at most, before a damping is left to the factorisation


@dataclass(frozen=True)
class Answer:
    """What one rung's inverse gives at one damping (0: the pseudo-inverse, and no scores): ``scores`` [Q, N]."""

    rung: str
    damping: float
    error: float
    angle: float
    scores: np.ndarray | None


def build_rungs(task: Task, train: Examples, full: bool = True) -> dict[str, Spectral]:
    """The ladder at the task's parameters, in the order of :data:`RUNGS`; without the Hessian's two unless ``full``.

    Labels of the Fisher are taken exactly. The identity has the mean eigenvalue of the Gauss-Newton matrix.
    """
    gauss, blocks = spanned_ggn(task, train), spanned_ggn(task, train, "layer")
    factored = kfac(task, train, "exact")
    below = {
        "Gauss-Newton": gauss,
        "blocks": blocks,
        "right eigenvalues": in_basis(factored, blocks, "ranked"),
        "EK-FAC": ekfac(task, train, "exact"),
        "K-FAC": factored,
        "diagonal": diagonal(task, train, "exact"),
        "identity": Diagonal(torch.full((gauss.size,), float(gauss.eigenvalues.mean()), dtype=torch.float64)),
    }
    return dict.fromkeys(RUNGS[:2], dense_hessian(task, train)) | below if full else below


def measure_rungs(
    task: Task,
    rungs: dict[str, Spectral],
    train: Examples,
    queries: Examples,
    dampings: Sequence[float],
    decay: float,
    probes: int = PROBES,
) -> Iterator[Answer]:
    """Every rung's :class:`Answer` at the pseudo-inverse and at each of ``dampings`` (absolute).

    The pseudo-inverse is compared with H itself. Where the rungs lack the Hessian, products with it are streamed.
    """
    g_train, g_query = matrix(task, train).double(), matrix(task, queries).double()
    true = rungs.get("Hessian") or hessian(task, train, n_examples(train))
    for rung, operator in rungs.items():
        values = operator.eigenvalues.abs() if rung == MAGNITUDES else operator.eigenvalues
        along = operator.project(torch.cat([g_train, g_query]))  # once for all dampings
        along_train, along_query = along.split([len(g_train), len(g_query)])
        inverses = [torch.where(values.abs() > CUTOFF, 1.0 / values, 0.0), *(1.0 / (values + d) for d in dampings)]
        sent = g_train[:probes]
        solved = operator.lift(torch.cat([along_train[:probes] * inverse for inverse in inverses]))
        parts = zip(
            (0.0, *dampings), inverses, solved.split(len(sent)), true.matvec(solved).split(len(sent)), strict=True
        )
        for d, inverse, x, moved in parts:
            scores = ((along_query * inverse) @ along_train.T).float().numpy() if d else None
            yield Answer(rung, d, *inverse_error(moved + decay * x if d else moved, sent), scores)


def inverse_error(back: Tensor, sent: Tensor) -> tuple[float, float]:
    """``(E, angle)`` of what comes ``back`` [B, P] for what was ``sent`` [B, P]."""
    error = (back - sent).square().sum(1) / sent.square().sum(1)
    cosine = torch.nn.functional.cosine_similarity(back, sent)
    return float(error.mean()), float((1 - cosine.square()).clamp(min=0).mean())


def measure_large_hessian(
    task: Task,
    train: Examples,
    queries: Examples,
    dampings: Sequence[float],
    decay: float,
    probes: int = PROBES,
) -> tuple[list[Answer], float, float]:
    """The Hessian's rung without its eigenvectors: ``(answers, smallest eigenvalue, largest residual at decay)``.

    At ``decay`` by one factorisation (error and angle are then zero by their definition; the residual says how nearly),
    at the dampings that make H positive definite by CG, if it converges in :data:`PRODUCTS`. The others, the
    pseudo-inverse and the magnitudes are left out. Lanczos finds the smallest eigenvalue from above: hence a margin.
    """
    g_train, g_query = matrix(task, train), matrix(task, queries)
    solved, residual = solve_hessian(task, train, g_query.double(), decay)
    answers = [Answer("Hessian", decay, 0.0, 0.0, (solved @ g_train.double().T).float().numpy())]
    operator = hessian(task, train, n_examples(train))
    _, on, off = lanczos(operator, LANCZOS)
    least = float(torch.linalg.eigvalsh(torch.diag(on) + torch.diag(off, 1) + torch.diag(off, -1))[0])
    sent = g_train[:probes]
    for d in (d for d in dampings if d != decay and d > -MARGIN * least):
        solution = cg(operator, torch.cat([g_query, sent]), d, iterations=PRODUCTS, tolerance=TOLERANCE)
        if solution.trace[-1]["residual"] > TOLERANCE:
            continue
        solved, x = solution.solution.split([len(g_query), len(sent)])
        scores = (solved @ g_train.T).numpy()
        answers.append(Answer("Hessian", d, *inverse_error(operator.matvec(x) + decay * x, sent), scores))
    return answers, least, residual
