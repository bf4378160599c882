"""The Gauss-Newton matrix of a net with more parameters than pseudo-gradients: its eigenvectors in their span.

N examples of C classes have N C exact pseudo-gradients R [N C, P] (:mod:`tda.curvature.second_derivatives`), and
``GGN = R^T R / N`` has no more eigenvalues than rows. A decomposition then costs P (N C)^2 in place of P^3.
"""

from __future__ import annotations

from copy import copy

import torch
from torch import Tensor

from tda.curvature.operators import DENSE_ADVICE, Blocks, Dense, Spectral, finite
from tda.curvature.second_derivatives import moments, parameter_groups, pseudo_gradients, require_outputs
from tda.task import Examples, Task, n_examples, take, tensors
from tda.tools.memory_limit import require


class Spanned(Spectral):
    """``R^T R / n`` for rows R [K, P] with K <= P: K eigenvalues, and zero P - K times.

    From ``R^T = Q (T over 0)`` with Q [P, P] a product of K Householder reflections, never written down, and the
    eigenvectors W of ``T T^T / n`` [K, K]: the eigenvectors are the columns of ``Q diag(W, 1)``, exactly orthogonal
    also where the rows depend on each other. In float64.
    """

    def __init__(self, rows: Tensor, n: int):
        count, size = rows.shape
        if count > size:
            raise ValueError(f"Spanned: {count} rows of {size} parameters; their P x P matrix is smaller. Use Dense.")
        self._reflections, self._weights = torch.geqrf(finite(rows, "a pseudo-gradient").double().T)
        corner = self._reflections[:count].triu()
        values, self._turn = torch.linalg.eigh(corner @ corner.T / n)
        self.eigenvalues = torch.cat([values.clamp(min=0.0), values.new_zeros(size - count)])

    def project(self, v: Tensor) -> Tensor:
        along = torch.ormqr(self._reflections, self._weights, v.double(), left=False)
        count = len(self._turn)
        return torch.cat([along[:, :count] @ self._turn, along[:, count:]], 1).to(v.dtype)

    def lift(self, coordinates: Tensor) -> Tensor:
        count, c = len(self._turn), coordinates.double()
        along = torch.cat([c[:, :count] @ self._turn.T, c[:, count:]], 1)
        return torch.ormqr(self._reflections, self._weights, along, left=False, transpose=True).to(coordinates.dtype)

    def with_eigenvalues(self, eigenvalues: Tensor) -> Spanned:
        other = copy(self)
        other.eigenvalues = eigenvalues
        return other


def spanned_ggn(task: Task, train: Examples, by: str = "", chunk: int = 128) -> Spectral:
    """GGN from its N x C pseudo-gradients: whole, or its diagonal blocks ``by`` layer or tensor. For small nets.

    The same matrices as ``dense_ggn`` and ``block_ggn``, zero eigenvalues included, each in its smaller form:
    :class:`Spanned` where it has more parameters than there are pseudo-gradients, :class:`Dense` where not. Memory: 16
    bytes for every entry of the pseudo-gradients that are spanned, and 4 for all of them. Refused, with its size in MB,
    where it does not fit.
    """
    size, count = sum(p.numel() for p in task.params.values()), n_examples(train) * _directions(task, train)
    groups = parameter_groups(task, by) if by else {"all": torch.arange(size)}
    wide = {name: index for name, index in groups.items() if len(index) > count}
    narrow = {name: index for name, index in groups.items() if name not in wide}
    bytes_ = 24.0 * sum(len(i) ** 2 for i in narrow.values()) + 24.0 * count**2 * len(wide)
    bytes_ += 4.0 * count * size * bool(wide) + 16.0 * count * sum(len(i) for i in wide.values())
    require(bytes_, f"the Gauss-Newton matrix of {size} parameters in {count} pseudo-gradients", DENSE_ADVICE)
    operators: dict[str, Spectral] = {}
    if narrow:
        operators |= {name: Dense(block) for name, block in moments(task, train, narrow, chunk).items()}
    if wide:
        rows = torch.cat(list(pseudo_gradients(task, train, "exact", chunk=chunk)))
        operators |= {name: Spanned(rows[:, index], n_examples(train)) for name, index in wide.items()}
    if not by:
        return operators["all"]
    return Blocks(size, {name: (index, operators[name]) for name, index in groups.items()})


def _directions(task: Task, train: Examples) -> int:
    """Pseudo-gradients an example: output positions x classes."""
    require_outputs(task)
    with torch.no_grad():
        return task.outputs_fn(task.params, tensors(take(train, slice(0, 1))))[0].numel()
