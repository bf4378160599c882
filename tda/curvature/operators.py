"""Symmetric linear operators over the flat parameter vector, and the ones whose eigenvectors are known.

P counts the parameters in the order of ``task.params`` (:func:`tda.tools.gradients.flatten`). A :class:`Spectral`
operator knows C = Q diag(w) Q^T and applies any function of its eigenvalues, such as the damped inverse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import torch
from torch import Tensor

from tda.task import chunks
from tda.tools.memory_limit import require

ROWS = 64  # unit vectors sent through a matvec at once when a matrix is written out


class Operator:
    """A symmetric matrix seen through its products: ``matvec(v)`` is ``v C`` for every row of ``v`` [B, P]. It has a
    ``size`` P, a ``dtype``, and a ``scale``, its mean eigenvalue: the unit of a relative damping.
    """

    def materialise(self) -> Tensor:
        """C as a matrix [P, P]. Refused with its size in MB where it does not fit."""
        require(self.size**2 * self.dtype.itemsize, f"a dense {self.size} x {self.size} matrix", DENSE_ADVICE)
        unit = torch.eye(self.size, dtype=self.dtype)
        return torch.cat([self.matvec(unit[part]) for part in chunks(self.size, ROWS)])


DENSE_ADVICE = "Use curvature='ekfac', or solver='cg', which never writes the matrix down."


class Spectral(Operator):
    """An operator with known eigenvectors, and ``eigenvalues`` in their order.

    ``project(v)``: the coordinates of the rows of ``v`` [B, P] along them; ``lift``: the vectors [B, P] with such
    coordinates; ``with_eigenvalues``: the same eigenvectors with other eigenvalues. :class:`Dual` lacks all three.
    """

    @cached_property
    def size(self) -> int:
        return len(self.eigenvalues)

    @cached_property
    def dtype(self) -> torch.dtype:
        return self.eigenvalues.dtype

    @property
    def scale(self) -> float:
        """The mean magnitude of the eigenvalues."""
        return float(self.eigenvalues.abs().mean())

    def function(self, f: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
        """``v f(C)`` for every row of ``v`` [B, P]; ``f`` maps the tensor of eigenvalues to one of the same shape."""
        return self.functions([f], v)[0]

    def functions(self, several: Sequence[Callable[[Tensor], Tensor]], v: Tensor) -> list[Tensor]:
        """:meth:`function` for several f, from one projection: half of the work of each but the first."""
        along = self.project(v)
        return [self.lift(along * f(self.eigenvalues).to(v.dtype)) for f in several]

    def matvec(self, v: Tensor) -> Tensor:
        return self.function(lambda w: w, v)

    def spectrum(self) -> Tensor:
        """The eigenvalues, largest first."""
        return self.eigenvalues.sort(descending=True).values


class Diagonal(Spectral):
    """diag(eigenvalues); the identity is ``Diagonal(torch.ones(P))``."""

    def __init__(self, eigenvalues: Tensor):
        self.eigenvalues = eigenvalues

    def project(self, v: Tensor) -> Tensor:
        return v

    lift = project

    def with_eigenvalues(self, eigenvalues: Tensor) -> Diagonal:
        return Diagonal(eigenvalues)


class Dense(Spectral):
    """A written-out symmetric matrix [P, P] and its eigendecomposition in float64. Refuses entries that are not finite.

    ``unit``: an operator whose ``scale`` it takes over (the Hessian is damped in units of the Gauss-Newton matrix).
    """

    def __init__(self, matrix: Tensor, unit: Operator | None = None):
        finite(matrix, "the curvature matrix")
        self.matrix, self.unit = matrix, unit

    @cached_property
    def _decomposed(self) -> tuple[Tensor, Tensor]:  # when first asked for: the mean of several matrices needs its own
        return torch.linalg.eigh(self.matrix.double())

    eigenvalues = property(lambda self: self._decomposed[0])
    vectors = property(lambda self: self._decomposed[1])

    def project(self, v: Tensor) -> Tensor:
        return v @ self.vectors.to(v.dtype)

    def lift(self, coordinates: Tensor) -> Tensor:
        return coordinates @ self.vectors.T.to(coordinates.dtype)

    @property
    def scale(self) -> float:
        return super().scale if self.unit is None else self.unit.scale

    def matvec(self, v: Tensor) -> Tensor:
        return v @ self.matrix.to(v.dtype)

    def materialise(self) -> Tensor:
        return self.matrix

    def with_eigenvalues(self, eigenvalues: Tensor) -> Dense:
        other = Dense((self.vectors * eigenvalues) @ self.vectors.T)
        other._decomposed = eigenvalues, self.vectors
        return other


class Kronecker(Spectral):
    """One layer's block: eigenvectors ``U_S (x) U_A`` over the row-major matrix [out, in], and any ``eigenvalues``
    [out * in]; ``bases`` = (U_S [out, out], U_A [in, in]), eigenvectors in the columns.
    """

    def __init__(self, bases: tuple[Tensor, Tensor], eigenvalues: Tensor):
        self.bases, self.eigenvalues = bases, eigenvalues

    def _both(self, v: Tensor, left: Tensor, right: Tensor) -> Tensor:
        return (left.to(v.dtype) @ v.reshape(len(v), len(left.T), len(right)) @ right.to(v.dtype)).flatten(1)

    def project(self, v: Tensor) -> Tensor:
        return self._both(v, self.bases[0].T, self.bases[1])

    def lift(self, coordinates: Tensor) -> Tensor:
        return self._both(coordinates, self.bases[0], self.bases[1].T)

    def with_eigenvalues(self, eigenvalues: Tensor) -> Kronecker:
        return Kronecker(self.bases, eigenvalues)


class Blocks(Spectral):
    """A block-diagonal operator: ``{name: (index, block)}``, a spectral block at the positions ``index`` of the vector.

    ``function`` gives zero at positions that no block covers (``covered`` [P] bool): a gradient loses that part.
    """

    def __init__(self, size: int, blocks: dict[str, tuple[Tensor, Spectral]]):
        self.size, self.blocks = size, blocks

    @property
    def eigenvalues(self) -> Tensor:
        return torch.cat([block.eigenvalues for _, block in self.blocks.values()])

    @cached_property
    def index(self) -> Tensor:
        return torch.cat([index for index, _ in self.blocks.values()])

    @cached_property
    def covered(self) -> Tensor:
        mask = torch.zeros(self.size, dtype=torch.bool)
        mask[self.index] = True
        return mask

    def _split(self, coordinates: Tensor) -> Iterator[tuple[Spectral, Tensor]]:
        parts = coordinates.split([len(index) for index, _ in self.blocks.values()], dim=-1)
        return ((block, part) for (_, block), part in zip(self.blocks.values(), parts, strict=True))

    def project(self, v: Tensor) -> Tensor:
        return torch.cat([block.project(part) for block, part in self._split(v[:, self.index])], dim=1)

    def lift(self, coordinates: Tensor) -> Tensor:
        whole = coordinates.new_zeros(len(coordinates), self.size)
        whole[:, self.index] = torch.cat([block.lift(part) for block, part in self._split(coordinates)], dim=1)
        return whole

    def with_eigenvalues(self, eigenvalues: Tensor) -> Blocks:
        blocks = [block.with_eigenvalues(part) for block, part in self._split(eigenvalues)]
        places = [(name, index) for name, (index, _) in self.blocks.items()]
        return Blocks(self.size, {k: (index, block) for (k, index), block in zip(places, blocks, strict=True)})


class Dual(Spectral):
    """``G^T G / N`` through its Gram matrix ``G G^T`` [N, N]: at most N eigenvalues, and zero on all that G does not
    span. ``rows`` G [N, P]. ``functions`` give the complement f(0); ``scale`` is tr / N.
    """

    def __init__(self, rows: Tensor, gram: Tensor):
        finite(gram, "the Gram matrix of the gradients")
        self.rows, self.size, self.dtype = rows, rows.shape[1], rows.dtype
        values, self.weights = torch.linalg.eigh(gram.double() / len(rows))
        self.eigenvalues = values.clamp(min=0.0)
        self.kept = values > values[-1] * len(rows) * torch.finfo(rows.dtype).eps  # what is below is rounding
        if not self.kept.any():
            raise ValueError("the empirical Fisher is zero: every training gradient vanishes. Attribute earlier.")

    def functions(self, several: Sequence[Callable[[Tensor], Tensor]], v: Tensor) -> list[Tensor]:
        values, weights = self.eigenvalues[self.kept], self.weights[:, self.kept]
        along = (v.to(self.dtype) @ self.rows.T).double() @ weights

        def lifted(f: Callable[[Tensor], Tensor]) -> Tensor:
            rest = f(values.new_zeros(1))
            inner = along * ((f(values) - rest) / values) @ weights.T / len(self.rows)
            return rest.to(v.dtype) * v + (inner.to(self.dtype) @ self.rows).to(v.dtype)

        return [lifted(f) for f in several]


def finite(value: Tensor, what: str) -> Tensor:
    """``value``, or a ``ValueError`` that names ``what`` if an entry is NaN or infinite."""
    if not value.isfinite().all():
        raise ValueError(f"{what} is not finite. Check the model's losses and gradients on the training examples.")
    return value
