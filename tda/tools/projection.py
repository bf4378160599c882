"""Random projections of per-example gradients, and what all projected methods share: features and a damped inverse.

A gradient g [P] becomes S g [d] with a random S for which ``E <S a, S b> = <a, b>``:

- ``sparse``: every coordinate gets a random sign and is added to one of d sums (a count sketch);
- ``rademacher``: dense, entries +-1 / sqrt(d), the published choice of TRAK.

For fixed a and b both have the *same* variance, ``(|a|^2 |b|^2 + <a,b>^2 - 2 sum_j a_j^2 b_j^2) / d``, but the
sparse one costs P operations a gradient instead of P d. A dense matrix is held only while it is small: else blocks of
its rows are drawn again for every chunk of gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from tda.output_loss import IGNORE
from tda.task import Examples, Params, Task, n_examples
from tda.tools.cache import remembered
from tda.tools.gradients import CHUNK, blocks
from tda.tools.memory_limit import require

KINDS = ("sparse", "rademacher", "none")
OUTPUTS = ("margin", "loss")
ROUNDING = 1e-6  # of the root mean square: second moments below its square hold rounding only
BLOCK = 1 << 22  # entries of a dense projection drawn at once (16 MB)
HELD = 1 << 24  # entries of a dense projection that is drawn once and held (64 MB)


@remembered()
def projector(kind: str, width: int, dimension: int, seed: int) -> Callable[[Tensor], Tensor]:
    """``project(gradients [B, width]) -> [B, dimension]`` for one of :data:`KINDS` (``none`` returns its argument); the
    same arguments, the same map. Memory: 12 bytes a parameter (sparse), at most 64 MB (dense).
    """
    if kind == "none":
        return lambda gradients: gradients
    if kind == "sparse":
        rng = np.random.default_rng([seed, 71])
        sums, signs = rng.integers(dimension, size=width), rng.integers(2, size=width).astype(np.float32) * 2 - 1
        order = np.argsort(sums, kind="stable")
        ends = np.searchsorted(sums[order], np.arange(dimension + 1))
        matrix = csr_array((signs[order], order.astype(np.int32), ends.astype(np.int32)), shape=(dimension, width))
        return lambda gradients: torch.from_numpy((matrix @ gradients.numpy().T).T.copy()).to(gradients.dtype)
    rows = max(8, BLOCK // dimension // 8 * 8)
    drawn = partial(_drawn, width, dimension, seed, rows)
    held = list(drawn()) if width * dimension <= HELD else None

    def dense(gradients: Tensor) -> Tensor:
        pairs = zip(gradients.split(rows, dim=1), held or drawn(), strict=True)
        total = sum(part @ block.to(part.dtype) for part, block in pairs)
        return total / total.shape[1] ** 0.5

    return dense


def _drawn(width: int, dimension: int, seed: int, rows: int) -> Iterator[Tensor]:
    """The entries of a dense projection times sqrt(d), block after block of its rows."""
    for number, start in enumerate(range(0, width, rows)):
        rng, shape = np.random.default_rng([seed, 72, number]), (min(rows, width - start), dimension)
        bits = np.frombuffer(rng.bytes(-(-shape[0] * dimension // 8)), np.uint8)
        signs = np.unpackbits(bits, count=shape[0] * dimension).reshape(shape).astype(np.float32) * 2 - 1
        yield torch.from_numpy(signs)


def log_odds(task: Task, params: Params, batch: Examples) -> tuple[Tensor, Tensor]:
    """``log(p / (1 - p))`` of every target [B, T] (0 where there is none), exact where p is 1 to float32, and the mask
    of targets [B, T].
    """
    logits, targets = task.outputs_fn(params, batch)
    place, target = targets.clamp(min=0).unsqueeze(-1), targets != IGNORE
    others = logits.scatter(-1, place, float("-inf")).logsumexp(-1)
    return (logits.gather(-1, place).squeeze(-1) - others) * target, target


def margins(task: Task, params: Params, batch: Examples) -> Tensor:
    """Model output f of every example, [B]: the mean of :func:`log_odds` over its targets."""
    odds, target = log_odds(task, params, batch)
    return odds.sum(-1) / target.sum(-1)


def features(
    task: Task,
    examples: Examples,
    output: str,
    projection: str,
    dimension: int,
    seed: int,
    chunk: int = CHUNK,
    moments: bool = False,
) -> Tensor:
    """Projected gradients of the examples' ``output`` (one of :data:`OUTPUTS`), [n, d] (d = P without a projection),
    with ``moments`` times :func:`inverse_root_moments` first. Memory: n x d x 4 bytes, and chunk x P x 4 in flight.
    """
    if output == "margin" and task.outputs_fn is None:
        raise ValueError(
            f"output='margin' needs logits, and the task {task.name!r} has no outputs_fn. Use output='loss'."
        )
    width = sum(p.numel() for p in task.params.values())
    n = n_examples(examples)
    size = n * (width if projection == "none" else dimension) + 2 * min(chunk, n) * width
    require(4 * size, f"{projection} features of {n} examples", "Use another projection, or lower dimension or chunk.")
    made = _features.__wrapped__ if projection == "none" else _features  # whole gradients are too large to keep
    return made(task, examples, output, projection, dimension, seed, chunk, moments)


@remembered(16)
def _features(task, examples, output, projection, dimension, seed, chunk, moments) -> Tensor:
    source = task
    if output == "margin":
        source = replace(task, loss_fn=lambda params, batch, reduction: margins(task, params, batch).sum())
    width = sum(p.numel() for p in task.params.values())
    project = projector(projection, width, dimension, seed)
    scale = inverse_root_moments(task) if moments else None
    projected = None
    for part, block in blocks(source, examples, chunk):
        rows = project(block if scale is None else block * scale)
        if not rows.isfinite().all():
            raise ValueError(
                f"gradients of {task.name!r} are not finite. Check the model's losses on the documents and queries."
            )
        projected = rows.new_empty(n_examples(examples), rows.shape[1]) if projected is None else projected
        projected[part] = rows
    return projected


def inverse_root_moments(task: Task) -> Tensor:
    """``1 / sqrt(V)`` [P], with V AdamW's ``exp_avg_sq`` at the last recorded checkpoint; 0 where V is nothing.

    Nothing is less than 1e-6 of the root mean square of sqrt(V): a parameter that never had a gradient (the embedding
    of a word that no document holds), or only rounding (the bias of attention's keys). Dividing by it would let it
    drown the others. Adam's bias correction is a common factor of V and left out. Raises ``ValueError`` for a run
    without these moments, of other parameters, or of another model.
    """
    known = () if task.run is None else task.run.checkpoints
    if not known:
        raise ValueError(f"the task {task.name!r} has no checkpoints to take second moments from; use moments=False.")
    params, optimizer = known[-1].load()
    stored = optimizer.get("exp_avg_sq")
    if stored is None:
        raise ValueError(
            f"the last checkpoint of {task.name!r} records no second moments (exp_avg_sq; it has {sorted(optimizer)}). "
            f"Train with AdamW, which records them, or use moments=False."
        )
    if set(stored) != set(task.params) or not all(
        np.array_equal(params[k].numpy(), task.params[k].numpy(), equal_nan=True) for k in task.params
    ):
        raise ValueError(
            f"the last checkpoint of {task.name!r} is not the model that is attributed: its parameters differ. "
            f"Give the task the run that made its parameters, or use moments=False."
        )
    root = torch.cat([stored[k].flatten() for k in task.params]).sqrt()
    taught = root > ROUNDING * root.square().mean().sqrt()
    return torch.where(taught, 1 / torch.where(taught, root, 1.0), 0.0)


def damped_inverse(rows: Tensor, damping: float, name: str) -> Callable[[Tensor], Tensor]:
    """``apply(v [B, d]) -> v (X^T X + delta)^-1`` for X = ``rows`` [n, d]; delta = damping * tr(X^T X) / min(n, d).

    The smaller of X^T X and X X^T is factored (Woodbury). Raises ``ValueError`` where damping is 0 and X^T X is
    singular, which it always is for d >= n: the scores of the documents among themselves are then the identity.
    """
    n, d = rows.shape
    dual = d > n
    gram = (rows @ rows.T).double() if dual else rows.double().T @ rows.double()
    delta = damping * float(gram.trace()) / min(n, d)
    if damping == 0:
        rank = 0 if dual else int(torch.linalg.matrix_rank(gram, hermitian=True, rtol=1e-10))
        if d >= n or rank < d:
            why = f"dimension {d} is not below the number of documents, {n}" if d >= n else f"its rank is {rank}"
            raise ValueError(
                f"{name}: without damping the {d} x {d} kernel is singular: {why}. Lower dimension (a quarter of the "
                f"documents is a start), or set damping, for example 0.1."
            )
    if not gram.trace() > 0:
        raise ValueError(f"{name}: every projected gradient is zero. Attribute an earlier checkpoint.")
    factor = torch.linalg.cholesky(gram + delta * torch.eye(len(gram), dtype=gram.dtype))
    if not dual:
        return lambda v: torch.cholesky_solve(v.double().T, factor).T

    def apply(v: Tensor) -> Tensor:
        weights = torch.cholesky_solve((rows @ v.T).double(), factor).T
        return (v.double() - (weights.to(rows.dtype) @ rows).double()) / delta

    return apply
