"""Curvature matrices as composable linear operators, their inverses, and solvers.

:func:`operator` builds one by name; :func:`inverse` gives its damped inverse as a function.
"""

# The attribution package first: one of its methods imports this one, and either may be asked for first.
import tda.attribution  # noqa: F401
from tda.curvature.basis import in_basis
from tda.curvature.exact import block_ggn, dense_ggn, dense_hessian, ggn, hessian
from tda.curvature.kronecker import diagonal, ekfac, factors, kfac
from tda.curvature.layers import captured, tracked, untracked
from tda.curvature.named import CURVATURES, inverse, operator
from tda.curvature.operators import Blocks, Dense, Diagonal, Dual, Kronecker, Operator, Spectral
from tda.curvature.spanned import Spanned, spanned_ggn

__all__ = [
    "CURVATURES", "Blocks", "Dense", "Diagonal", "Dual", "Kronecker", "Operator", "Spanned", "Spectral", "block_ggn",
    "captured",
    "dense_ggn", "dense_hessian", "diagonal", "ekfac", "factors", "ggn", "hessian", "in_basis", "inverse", "kfac",
    "operator", "spanned_ggn", "tracked", "untracked",
]  # fmt: skip
