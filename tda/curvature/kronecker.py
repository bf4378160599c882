"""K-FAC and EK-FAC: a layer's block of the Gauss-Newton matrix as a Kronecker product, and with its eigenvalues mended.

With a_s [in] the inputs and g_s [out] the back-propagated vectors of a layer (:mod:`tda.curvature.layers`):

    A = mean over examples and real positions of a_s a_s^T
    S = (1/N) sum over examples, u and positions of g_s g_s^T

K-FAC (Martens and Grosse 2015; "expand" of Eschenhagen et al. 2023) takes the block as ``S (x) A``, eigenvectors
U_S (x) U_A and eigenvalues lambda_S lambda_A: right if inputs and slopes are independent and positions do not interact.
EK-FAC (George et al. 2018) keeps the eigenvectors and measures the diagonal of the block in that basis,

    s_jm = (1/N) sum over examples and u of ((U_S^T G U_A)_jm)^2,      G = sum_s g_s a_s^T
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from tda.curvature.layers import Captured, passes, say_share, tracked, untracked
from tda.curvature.operators import Blocks, Diagonal, Kronecker, Spectral, finite
from tda.curvature.second_derivatives import label_noise, pseudo_gradients
from tda.sequences import alike
from tda.task import Examples, Task, n_examples, take
from tda.tools.cache import remembered
from tda.tools.gradients import CHUNK, batch_of
from tda.tools.memory_limit import require

KEPT = 32  # results kept in memory, for the next damping and the next queries: of checkpoints, or of models of halves
UNTRACKED = ("drop", "diagonal", "refuse")


def _sweep(task, train, layers, fisher, seed, chunk) -> Iterator[tuple[Captured, Tensor | None, bool]]:
    """``(captured, real, first pass of its chunk)`` over all chunks and vectors u."""
    noise = label_noise(task, train, seed)
    for part in alike(train, chunk):
        for number, (found, real) in enumerate(passes(task, batch_of(take(train, part)), layers, fisher, noise[part])):
            yield found, real, number == 0


@remembered(KEPT)
def factors(
    task: Task, train: Examples, fisher: str = "sampled", layers: str = "", seed: int = 0, chunk: int = CHUNK
) -> dict[str, tuple[Tensor, Tensor]]:
    """``{layer: (A [in, in], S [out, out])}`` in float64. Refuses factors that are not finite or would not fit."""
    chosen = tracked(task, layers)
    entries = {name: sum(k * k for k in layer.shape) for name, layer in chosen.items()}
    widest = max(entries, key=entries.get)
    require(
        24.0 * sum(entries.values()),  # float64: the sums, the eigenvectors, the workspace of the decomposition
        f"the Kronecker factors of {len(chosen)} layers",
        f"The widest layer is {widest!r}, {' x '.join(map(str, chosen[widest].shape))}: leave it out with the option "
        f"layers (a regex), or use curvature='diagonal'.",
    )
    sums = {n: [torch.zeros(k, k, dtype=torch.float64) for k in x.shape[::-1]] for n, x in chosen.items()}
    positions = dict.fromkeys(chosen, 0)
    for found, real, first in _sweep(task, train, chosen, fisher, seed, chunk):
        for name, (a, g) in found.items():
            g = g.flatten(0, 1)
            sums[name][1] += (g.T @ g).double()
            if first:
                kept = a.flatten(0, 1) if real is None else a[real.repeat(1, a.shape[1] // real.shape[1])]
                sums[name][0] += (kept.T @ kept).double()
                positions[name] += len(kept)
    n = n_examples(train)
    return {
        name: (finite(a / positions[name], f"factor A of layer {name!r}"), finite(s / n, f"factor S of layer {name!r}"))
        for name, (a, s) in sums.items()
    }


@remembered(KEPT)
def kfac(
    task: Task, train: Examples, fisher: str = "sampled", layers: str = "", rest: str = "drop", seed: int = 0,
    chunk: int = CHUNK,
) -> Blocks:  # fmt: skip
    """K-FAC with the Fisher of one kind (exact, sampled, empirical), one block per tracked layer.

    ``layers``: a regex on layer names. ``rest``, what happens to parameters outside them: ``drop`` (they take no part:
    functions of the operator give zero), ``diagonal`` (the diagonal of the same Fisher), ``refuse`` (a ``ValueError``).
    Memory: chunk x S x (in + out) of all layers, and the factors in float64 twice.
    """
    known = factors(task, train, fisher, layers, seed, chunk)
    return _in_factors(known, task, train, fisher, layers, rest, seed, chunk)


@remembered(KEPT)
def ekfac(
    task: Task, train: Examples, fisher: str = "sampled", layers: str = "", rest: str = "drop", seed: int = 0,
    chunk: int = CHUNK,
) -> Blocks:  # fmt: skip
    """EK-FAC: the eigenvectors of :func:`kfac` (same options), eigenvalues measured along them in a second sweep."""
    base = kfac(task, train, fisher, layers, rest, seed, chunk)
    return base.with_eigenvalues(_measured(base, task, train, fisher, layers, seed, chunk))


def mean_kronecker(curvature, tasks, train, fisher, layers, rest, seed, chunk) -> Blocks:
    """kfac or ekfac over several ``tasks``, as :func:`tda.curvature.named.averaged` defines their mean."""
    each = [factors(task, train, fisher, layers, seed, chunk) for task in tasks]
    known = {name: tuple(mean(pairs[name][side] for pairs in each) for side in (0, 1)) for name in each[0]}
    bases = [_in_factors(known, task, train, fisher, layers, rest, seed, chunk) for task in tasks]
    if curvature == "kfac":  # they differ where no layer is, if that is kept
        return bases[0].with_eigenvalues(mean(base.eigenvalues for base in bases))
    pairs = zip(bases, tasks, strict=True)
    along = [_measured(base, task, train, fisher, layers, seed, chunk) for base, task in pairs]
    return bases[0].with_eigenvalues(mean(along))


def mean(values: Iterable[Tensor]) -> Tensor:
    values = list(values)
    return sum(values) / len(values)


def _in_factors(known, task, train, fisher, layers, rest, seed, chunk) -> Blocks:
    """:func:`kfac` of factors that are ``known``: those of :func:`factors`, or a mean of several."""
    chosen = tracked(task, layers)
    blocks: dict[str, tuple[Tensor, Spectral]] = {}
    for name, (a, s) in known.items():
        (values_a, basis_a), (values_s, basis_s) = torch.linalg.eigh(a), torch.linalg.eigh(s)
        values = torch.outer(values_s.clamp(min=0.0), values_a.clamp(min=0.0)).flatten()
        blocks[name] = (chosen[name].index, Kronecker((basis_s, basis_a), values))
    blocks |= _outside(task, train, fisher, untracked(task, chosen), rest, seed, chunk)
    return Blocks(sum(p.numel() for p in task.params.values()), blocks)


def _measured(base, task, train, fisher, layers, seed, chunk) -> Tensor:
    """The Fisher of ``task`` along the eigenvectors of ``base``; a block that is no layer keeps its eigenvalues."""
    chosen = tracked(task, layers)
    values = {name: torch.zeros(layer.shape, dtype=torch.float64) for name, layer in chosen.items()}
    for found, _, _ in _sweep(task, train, chosen, fisher, seed, chunk):
        for name, (a, g) in found.items():
            basis_s, basis_a = (basis.to(a.dtype) for basis in base.blocks[name][1].bases)
            a, g = a @ basis_a, g @ basis_s
            if a.shape[1] == 1:  # one position: the square of a product is the product of the squares
                values[name] += g.squeeze(1).square().T @ a.squeeze(1).square()
            else:
                values[name] += (g.transpose(1, 2) @ a).square().sum(0)
    known = {name: value.flatten() / n_examples(train) for name, value in values.items()}
    corrected = [known.get(name, block.eigenvalues) for name, (_, block) in base.blocks.items()]
    return finite(torch.cat(corrected), "an EK-FAC eigenvalue")


def _outside(task, train, fisher, left, rest, seed, chunk) -> dict[str, tuple[Tensor, Spectral]]:
    """The block of the parameters that no layer holds, if it is wanted."""
    if rest not in UNTRACKED:
        raise ValueError(f"rest={rest!r}; one of {UNTRACKED}.")
    if not left or rest == "drop":
        say_share(task, left, "a Kronecker-factored curvature with rest='drop'")
        return {}
    if rest == "refuse":
        raise ValueError(
            f"no Kronecker factor fits the parameters {list(left)} of the task {task.name!r}. Use rest='drop' to leave "
            f"them out, or rest='diagonal' for the diagonal of the Fisher there."
        )
    return {"(diagonal)": (torch.cat(list(left.values())), diagonal(task, train, fisher, seed, chunk, tuple(left)))}


@remembered(KEPT)
def diagonal(
    task: Task, train: Examples, fisher: str = "sampled", seed: int = 0, chunk: int = CHUNK,
    names: tuple[str, ...] = (),
) -> Diagonal:  # fmt: skip
    """The diagonal of the Fisher of one kind, for ``names`` or all parameters. Streams: chunk x P x 4 bytes."""
    rows = pseudo_gradients(task, train, fisher, seed, chunk, names)
    total = sum(block.square().sum(0).double() for block in rows) / n_examples(train)
    return Diagonal(finite(total, "the diagonal of the Fisher"))
