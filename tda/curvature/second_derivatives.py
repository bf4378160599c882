"""The Hessian and the Gauss-Newton matrix: as products streamed over the data, as matrices, as blocks.

    H   = (1/N) sum_i grad^2 l_i(theta)                                        product by forward over reverse
    GGN = (1/N) sum_i J_i^T H_i J_i = (1/N) sum_i sum_u (J_i^T u)(J_i^T u)^T   product by J v, H_i, then J^T

with J_i the Jacobian of the outputs of example i and H_i the Hessian of its loss in them. The vectors u of
:mod:`tda.output_loss` make GGN the second moment of *pseudo-gradients* ``J_i^T u``.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np
import torch
from scipy.linalg.blas import dsyrk
from torch import Tensor
from torch.func import grad, jvp, vjp, vmap

from tda import output_loss
from tda.curvature.operators import DENSE_ADVICE, Blocks, Dense, Operator, finite
from tda.sequences import alike
from tda.task import Examples, Params, Task, chunks, n_examples, take, tensors
from tda.tools.gradients import CHUNK, batch_of, flatten, over_examples, unflatten
from tda.tools.memory_limit import require

POSITIONS = 2**13  # vectors x examples x output positions that go through the network together

Product = Callable[[Task, Examples, Tensor], Tensor]  # of one batch: the sum over its examples of v C_i


def require_outputs(task: Task) -> None:
    if task.outputs_fn is None or task.model is None:
        raise ValueError(
            f"the task {task.name!r} has no outputs_fn or no model; this curvature looks at outputs and layers. Give "
            f"the task both, or use curvature='empirical_fisher', or 'hessian' with an absolute damping."
        )


def shape_of(task: Task, examples: Examples) -> tuple[int, int]:
    """``(T, C)`` of the outputs of the untrimmed examples; T = 1 for a classifier."""
    require_outputs(task)
    with torch.no_grad():
        return tuple(task.outputs_fn(task.params, tensors(take(examples, slice(0, 1))))[0].shape[1:])


def label_noise(task: Task, examples: Examples, seed: int) -> Tensor:
    """What the sampled Fisher draws, [N, T, ...] float64, seeded by ``seed`` and the content of each example."""
    shape, columns = shape_of(task, examples), {k: v.numpy() for k, v in sorted(tensors(examples).items())}
    keys = [zlib.crc32(b"".join(v[i].tobytes() for v in columns.values())) for i in range(n_examples(examples))]
    draw = output_loss.of(task).noise
    return torch.from_numpy(np.stack([draw(np.random.default_rng([seed, key]), *shape) for key in keys]))


def pseudo_gradients(
    task: Task, train: Examples, fisher: str, seed: int = 0, chunk: int = CHUNK, names: tuple[str, ...] = ()
) -> Iterator[Tensor]:
    """Blocks of pseudo-gradients [b, P], whose summed ``rows^T rows`` over N is the Fisher of that kind; ``names``:
    only these parameters (all by default). Texts of like length come together.
    """
    noise, loss = label_noise(task, train, seed), output_loss.of(task)
    moving = {k: task.params[k] for k in names or task.params}

    def pull(params: Params, example: Examples, u: Tensor) -> Tensor:
        outputs, _ = task.outputs_fn(task.params | params, {k: v.unsqueeze(0) for k, v in example.items()})
        return (outputs[0] * u).sum()

    per_example = over_examples(grad(pull), in_dims=(None, 0, 0))
    for part in alike(train, chunk):
        batch = batch_of(take(train, part))
        with torch.no_grad():
            outputs, targets = task.outputs_fn(task.params, batch)
        for u in loss.vectors(outputs, targets, fisher, noise[part]):
            yield flatten(per_example(moving, batch, u)).detach()


class OverData(Operator):
    """A mean over examples of curvature products; ``subset(index)`` is the same over a mini-batch. ``scale`` is
    tr(GGN) / P, for the Hessian too; exact for classifiers, estimated by the sampled Fisher elsewhere.
    """

    def __init__(self, task: Task, train: Examples, product: Product, chunk: int = 128):
        self.task, self.train, self.product, self.chunk = task, train, product, chunk
        self.size = sum(p.numel() for p in task.params.values())
        self.dtype = next(iter(task.params.values())).dtype

    def subset(self, index: np.ndarray) -> OverData:
        return OverData(self.task, take(self.train, index), self.product, self.chunk)

    def matvec(self, v: Tensor) -> Tensor:
        together, n = v.to(self.dtype), n_examples(self.train)
        total = torch.zeros_like(together)
        for part in chunks(n, self.chunk):
            batch = batch_of(take(self.train, part))
            positions = batch["input_ids"].numel() if "input_ids" in batch else n_examples(batch)
            for rows in chunks(len(v), max(1, POSITIONS // positions)):
                total[rows] += self.product(self.task, batch, together[rows])
        return (total / n).to(v.dtype)

    @cached_property
    def scale(self) -> float:
        few = self.task.output_loss == "cross_entropy" and shape_of(self.task, self.train)[0] == 1
        kind = "exact" if few else "sampled"
        squares = sum(float(rows.double().square().sum()) for rows in pseudo_gradients(self.task, self.train, kind))
        return squares / n_examples(self.train) / self.size


def hessian(task: Task, train: Examples, chunk: int = 128) -> OverData:
    """H as an operator, matrix-free. Indefinite unless the loss is convex. Memory: the activations of ``POSITIONS``."""
    return OverData(task, train, _hessian_product, chunk)


def ggn(task: Task, train: Examples, chunk: int = 128) -> OverData:
    """GGN as an operator, matrix-free; needs ``outputs_fn``. No negative eigenvalues."""
    require_outputs(task)
    return OverData(task, train, _ggn_product, chunk)


def _hessian_product(task: Task, batch: Examples, v: Tensor) -> Tensor:
    slope = grad(lambda p: task.loss_fn(p, tensors(batch), "sum"))

    def along_direction(direction: Tensor) -> Params:
        return jvp(slope, (task.params,), (unflatten(direction, task.params),))[1]

    return flatten(vmap(along_direction)(v)).detach()


def _ggn_product(task: Task, batch: Examples, v: Tensor) -> Tensor:
    def outputs(p: Params) -> Tensor:
        return task.outputs_fn(p, batch)[0]

    found, pull = vjp(outputs, task.params)
    bent = output_loss.of(task).hessian(found, task.outputs_fn(task.params, batch)[1])

    def along_direction(direction: Tensor) -> Params:
        moved = jvp(outputs, (task.params,), (unflatten(direction, task.params),))[1]
        return pull(bent(moved))[0]

    return flatten(vmap(along_direction)(v)).detach()


def dense_hessian(task: Task, train: Examples, chunk: int = 128) -> Dense:
    """H written down with its eigendecomposition in float64: P x P x 24 bytes at the peak."""
    operator = hessian(task, train, chunk)
    require(operator.size**2 * 24.0, f"the Hessian of {operator.size} parameters", DENSE_ADVICE)
    matrix = operator.materialise().double()
    return Dense((matrix + matrix.T) / 2, operator)


def dense_ggn(task: Task, train: Examples, chunk: int = 128) -> Dense:
    """GGN as :func:`dense_hessian`; with one position an example from N x C pseudo-gradients, which costs less."""
    operator = ggn(task, train, chunk)
    require(operator.size**2 * 24.0, f"the Gauss-Newton matrix of {operator.size} parameters", DENSE_ADVICE)
    if shape_of(task, train)[0] > 1:
        matrix = operator.materialise().double()
        return Dense((matrix + matrix.T) / 2)
    return Dense(moments(task, train, {"all": torch.arange(operator.size)}, chunk)["all"])


class SmallGGN:
    """GGN of a small network, and ``solve(v, shift)``: ``v (GGN + shift)^-1`` for every row of ``v`` [B, P], in float64
    by Cholesky's decomposition of the smaller of two matrices. With A [R, P] the R = N T C exact pseudo-gradients over
    sqrt(N), GGN = A^T A is one, [P, P], and A A^T the other, [R, R]:

        (A^T A + d)^-1 = (I - A^T (A A^T + d)^-1 A) / d        (Woodbury's identity)

    A tenth of the time of an eigendecomposition. ``lower`` is the lower half of the matrix, ``scale`` tr(GGN) / P. At
    the peak 24 bytes an entry of the matrix, and 8 R P.
    """

    def __init__(self, task: Task, train: Examples, chunk: int = CHUNK):
        (positions, width), size = shape_of(task, train), sum(p.numel() for p in task.params.values())
        count = n_examples(train) * positions * width
        need = 8.0 * count * size + 24.0 * min(count, size) ** 2
        require(need, f"{count} pseudo-gradients of {size} parameters", DENSE_ADVICE)
        rows = torch.cat([rows.double() for rows in pseudo_gradients(task, train, "exact", chunk=chunk)])
        rows.div_(n_examples(train) ** 0.5)
        # BLAS counts columns first, so that both are transposed: half of the work of rows @ rows.T
        self.lower = torch.from_numpy(dsyrk(1.0, rows.T.numpy(), trans=count < size).T)
        finite(self.lower, "the Gauss-Newton matrix")
        self.rows = rows if count < size else None
        self.scale = float(self.lower.trace()) / size

    def solve(self, v: Tensor, shift: float) -> Tensor:
        right, damped = v.double().T, self.lower.clone()
        damped.diagonal().add_(shift)
        lower = torch.linalg.cholesky(damped)
        if self.rows is None:
            return torch.cholesky_solve(right, lower).T.to(v.dtype)
        inner = torch.cholesky_solve(self.rows @ right, lower)
        return ((right - self.rows.T @ inner) / shift).T.to(v.dtype)


def block_ggn(task: Task, train: Examples, by: str = "layer", chunk: int = CHUNK) -> Blocks:
    """The diagonal blocks of GGN, one per ``by`` = layer (a module's tensors together) or tensor; 24 bytes an entry."""
    groups = parameter_groups(task, by)
    require(24.0 * sum(len(i) ** 2 for i in groups.values()), "the blocks of the Gauss-Newton matrix", DENSE_ADVICE)
    blocks, width = moments(task, train, groups, chunk), sum(p.numel() for p in task.params.values())
    return Blocks(width, {name: (index, Dense(blocks[name])) for name, index in groups.items()})


def moments(task: Task, train: Examples, groups: dict[str, Tensor], chunk: int) -> dict[str, Tensor]:
    """Blocks of the second moment of the exact pseudo-gradients, float64."""
    second_moments = {k: torch.zeros(len(i), len(i), dtype=torch.float64) for k, i in groups.items()}
    for rows in pseudo_gradients(task, train, "exact", chunk=chunk):
        for name, index in groups.items():
            part = rows[:, index].double()
            second_moments[name].addmm_(part.T, part, alpha=1.0 / n_examples(train))
    return second_moments


def parameter_groups(task: Task, by: str = "layer") -> dict[str, Tensor]:
    """``{name: positions in the flat vector}`` of each tensor, or of each module's tensors together."""
    if by not in ("layer", "tensor"):
        raise ValueError(f"by={by!r}; 'layer' or 'tensor'.")
    groups: dict[str, list[Tensor]] = {}
    for name, index in places(task).items():
        key = name.rpartition(".")[0] or name if by == "layer" else name
        groups.setdefault(key, []).append(index)
    return {key: torch.cat(parts) for key, parts in groups.items()}


def places(task: Task) -> dict[str, Tensor]:
    """Positions of every parameter in the flat vector."""
    sizes = [p.numel() for p in task.params.values()]
    return dict(zip(task.params, torch.arange(sum(sizes)).split(sizes), strict=True))
