"""Influence with the exact Gauss-Newton matrix and Hessian against a dense solve of curvlinops' matrices."""

from __future__ import annotations

from functools import partial

import numpy as np
import torch

from tda import attribute
from tda.studies.conformance.comparison import Comparison
from tda.studies.conformance.ekfac import between, for_curvlinops
from tda.studies.conformance.settings import setting

DAMPING = 1e-2
SOLVED = (
    ("ggn", "exact", "MLP"),
    ("ggn", "cg", "MLP"),
    ("ggn", "exact", "CNN"),
    ("hessian", "exact", "MLP"),
    ("hessian", "cg", "logistic"),
)
NAMES = {"ggn": "Gauss-Newton", "hessian": "Hessian"}


def comparisons() -> list[Comparison]:
    return [
        Comparison(
            f"{NAMES[curvature]} scores, {solver} solve, {kind}",
            "curvlinops",
            partial(ours, curvature, solver, kind),
            partial(by_curvlinops, curvature, kind),
        )
        for curvature, solver, kind in SOLVED
    ]


def ours(curvature: str, solver: str, kind: str) -> np.ndarray:
    """The package's scores; the negative eigenvalues of a Hessian are kept, as a dense solve keeps them."""
    known = {"curvature": curvature, "solver": solver, "unit": "absolute", "indefinite": "keep"}
    return attribute("influence", *setting(kind), damping=DAMPING, iterations=1000, **known)


def by_curvlinops(curvature: str, kind: str) -> np.ndarray:
    from curvlinops import GGNLinearOperator, HessianLinearOperator

    task, train, queries = setting(kind)
    operator = {"ggn": GGNLinearOperator, "hessian": HessianLinearOperator}[curvature]
    eye = torch.eye(sum(p.numel() for p in task.params.values()), dtype=torch.float64)
    written = operator(*for_curvlinops(task, train), check_deterministic=False) @ eye
    return between(lambda v: torch.linalg.solve(written + DAMPING * eye, v), task, train, queries)
