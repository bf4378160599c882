"""Curvature matrices as composable linear operators, their inverses, and solvers.

:func:`operator` builds one by name; :func:`inverse` gives its damped inverse as a function.
"""

from tda.curvature.kronecker import diagonal, ekfac, factors, kfac
from tda.curvature.layers import tracked, untracked
from tda.curvature.named import CURVATURES, inverse, operator
from tda.curvature.operators import Blocks, Dense, Diagonal, Dual, Kronecker, Operator, Spectral
from tda.curvature.second_derivatives import block_ggn, dense_ggn, dense_hessian, ggn, hessian

__all__ = [
    "CURVATURES", "Blocks", "Dense", "Diagonal", "Dual", "Kronecker", "Operator", "Spectral", "block_ggn",
    "dense_ggn", "dense_hessian", "diagonal", "ekfac", "factors", "ggn", "hessian", "inverse", "kfac",
    "operator", "tracked", "untracked",
]  # fmt: skip
