"""The eigenvectors of one operator with the eigenvalues of another."""

from __future__ import annotations

import torch
from torch import Tensor

from tda.curvature.operators import ROWS, Blocks, Operator, Spectral
from tda.task import chunks


def in_basis(basis: Spectral, other: Operator, how: str = "projected") -> Spectral:
    """The eigenvectors of ``basis`` with the eigenvalues of ``other``: takes the error of a factorisation apart.

    ``projected``: q^T C q for every eigenvector q, the best diagonal in that basis (with the Gauss-Newton matrix as C,
    the exact EK-FAC). ``ranked``: C's own eigenvalues (per block, where the basis has blocks), placed in the order of
    the basis' eigenvalues: right values, and an error of the eigenvectors alone. Writes C down, P x P, unless C has
    the blocks of the basis and is ``ranked``: their spectra are known.
    """
    if how not in ("projected", "ranked"):
        raise ValueError(f"in_basis: how={how!r}; 'projected' or 'ranked'.")
    blocks = basis.blocks if isinstance(basis, Blocks) else {"": (torch.arange(basis.size), basis)}
    if how == "ranked" and isinstance(other, Blocks) and _alike(blocks, other.blocks):
        return basis.with_eigenvalues(
            torch.cat([_ranked(block, other.blocks[k][1].eigenvalues) for k, (_, block) in blocks.items()])
        )
    matrix, eigenvalues = other.materialise().double(), []
    for index, block in blocks.values():
        part = matrix[index][:, index]
        if how == "projected":
            eigenvalues.append(torch.cat([_along(block, part, rows) for rows in chunks(len(index), ROWS)]))
        else:
            eigenvalues.append(_ranked(block, torch.linalg.eigvalsh(part)))
    return basis.with_eigenvalues(torch.cat(eigenvalues))


def _alike(some: dict[str, tuple[Tensor, Spectral]], others: dict[str, tuple[Tensor, Spectral]]) -> bool:
    """Whether two block structures have the same parameters under the same names, in whatever order."""
    return some.keys() <= others.keys() and all(
        torch.equal(index.sort().values, others[name][0].sort().values) for name, (index, _) in some.items()
    )


def _ranked(block: Spectral, values: Tensor) -> Tensor:
    order = block.eigenvalues.argsort()
    return torch.empty_like(order, dtype=values.dtype).scatter_(0, order, values.sort().values)


def _along(block: Spectral, part: Tensor, rows: slice) -> Tensor:
    unit = torch.zeros(rows.stop - rows.start, len(part), dtype=part.dtype)
    unit[torch.arange(len(unit)), torch.arange(rows.start, rows.stop)] = 1.0
    vectors = block.lift(unit)
    return (vectors @ part * vectors).sum(1)
