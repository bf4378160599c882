"""LoGra (Choe et al. 2024): influence in the projected gradients of the linear layers.

The gradient of a linear layer's weight is a sum over positions, ``G_i = sum_t b_it a_it^T`` with inputs a and output
gradients b. LoGra only forms ``P_o^T G_i P_i = sum_t (P_o^T b_it) (P_i^T a_it)^T``. With x_i this projection for one
layer (k^2 numbers) and F = X^T X / N its Fisher:

    score(q, i) = sum over layers x_q^T (F + delta)^-1 x_i

As in LogIX: the rank min(k, in, out), one Fisher a layer, delta = 0.1 times its mean eigenvalue (here: of those that
can differ from zero), weights only, random or principal sides. Ours: random sides are Gaussian with variance 1/k.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tda import output_loss
from tda.attribution.registry import method
from tda.curvature.layers import Layer, say_share, trackable, watching
from tda.sequences import alike
from tda.task import Examples, Task, n_examples, take
from tda.tools.cache import remembered
from tda.tools.door import entered
from tda.tools.gradients import CHUNK, batch_of
from tda.tools.memory_limit import require
from tda.tools.options import Count, NotNegative, Whole, one_of, option, read
from tda.tools.projection import damped_inverse

SIDES = ("random", "pca")
Layers = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Options:
    """The two projections of a layer and the damping of its Fisher."""

    seed: Whole = option(0, "draws random sides")
    chunk: Count = option(CHUNK, "examples in a backward pass")
    rank: Count = option(32, "k of both sides")
    sides: one_of(SIDES) = option("random", "or the principal components of the training documents")
    damping: NotNegative = option(0.1, "in units of each Fisher's mean eigenvalue")


@method("logra", family="curvature", paper="Choe et al. 2024", needs=("params", "outputs"), signed=True)
def attribute(task: Task, train: Examples, queries: Examples, options: Options) -> np.ndarray:
    """LoGra scores, [Q, N], in nats per unit of weight on a document's loss. Memory: (N + Q) x layers x k^2 x 4 bytes.

    Raises ``ValueError`` for a task without linear layers, a Fisher that is singular without damping, gradients that
    are not finite.
    """
    documents, query_rows = (_projected(task, train, part, options) for part in (train, queries))
    total = 0.0
    for name, rows in documents.items():
        total += len(rows) * _solver(rows, options, name)(query_rows[name]) @ rows.double().T
    return total.numpy()


def self_influence(task: Task, train: Examples, **options) -> np.ndarray:
    """Score of every document with itself, [N], at least 0. Options as in :func:`attribute`."""
    chosen, total = read("logra", Options, options), 0.0
    with entered(task, ("params",), train=train) as (train,):
        for name, rows in _projected(task, train, train, chosen).items():
            total += len(rows) * (_solver(rows, chosen, name)(rows) * rows).sum(1)
        return total.numpy()


def _solver(rows: Tensor, options: Options, layer: str) -> Callable[[Tensor], Tensor]:
    return damped_inverse(rows, options.damping, f"logra, layer {layer!r}")


def _projected(task: Task, train: Examples, examples: Examples, options: Options) -> Layers:
    """``{layer: projected gradients [n, k_o k_i]}``."""
    linear = _linear(task)
    if not linear:
        missing = "no outputs_fn" if task.outputs_fn is None else "none whose weight is among its parameters"
        raise ValueError(f"logra works on linear layers, and the task {task.name!r} has {missing}. Use 'trak'.")
    weights = {f"{name}.weight" if name else "weight" for name in linear}
    say_share(task, {k: p.flatten() for k, p in task.params.items() if k not in weights}, "logra")
    size = 4 * n_examples(examples) * options.rank**2 * len(linear)
    require(size, f"logra features of {n_examples(examples)} examples", "Lower rank.")
    pca_of = train if options.sides == "pca" else None
    return _features(task, examples, pca_of, options.rank, options.seed, options.chunk)


@remembered(8)
def _features(task: Task, examples: Examples, pca_of: Examples | None, rank: int, seed: int, chunk: int) -> Layers:
    parts: dict[str, list[Tensor]] = {}
    basis = _random_sides(task, rank, seed) if pca_of is None else _principal_sides(task, pca_of, rank, chunk)
    order = []
    for part in alike(examples, chunk):
        order.append(part)
        for name, (inputs, gradients) in _captured(task, batch_of(take(examples, part))).items():
            left, right = basis[name]
            projected = torch.einsum("bto,bti->boi", gradients @ left, inputs @ right)
            parts.setdefault(name, []).append(projected.flatten(1))
    back = torch.from_numpy(np.argsort(np.concatenate(order)))
    return {name: _finite(task, name, torch.cat(rows)[back]) for name, rows in parts.items()}


def _finite(task: Task, layer: str, value: Tensor) -> Tensor:
    if not value.isfinite().all():
        raise ValueError(f"gradients of {task.name!r} in layer {layer!r} are not finite. Check the model's losses.")
    return value


def _linear(task: Task) -> dict[str, Layer]:
    return {name: x for name, x in trackable(task).items() if not isinstance(x.module, torch.nn.Conv2d)}


def _sizes(layer: Layer) -> tuple[int, int]:
    return layer.shape[0], layer.shape[1] - layer.bias


def _random_sides(task: Task, rank: int, seed: int) -> dict[str, tuple[Tensor, Tensor]]:
    sides, dtype = {}, next(iter(task.params.values())).dtype
    for place, (name, layer) in enumerate(_linear(task).items()):
        rng, k = np.random.default_rng([seed, 73, place]), min(rank, *_sizes(layer))
        drawn = [rng.standard_normal((width, k)) / k**0.5 for width in _sizes(layer)]
        sides[name] = tuple(torch.from_numpy(side).to(dtype) for side in drawn)
    return sides


@remembered(2)
def _principal_sides(task: Task, train: Examples, rank: int, chunk: int) -> dict[str, tuple[Tensor, Tensor]]:
    """The leading eigenvectors of sum b b^T and of sum a a^T over the positions of the training documents."""
    squares: dict[str, list[Tensor]] = {}
    for part in alike(train, chunk):
        for name, (inputs, gradients) in _captured(task, batch_of(take(train, part))).items():
            totals = squares.setdefault(name, [0.0, 0.0])
            for side, rows in enumerate((gradients.flatten(0, 1), inputs.flatten(0, 1))):
                totals[side] = totals[side] + rows.T @ rows
    layers, sides = _linear(task), {}
    for name, pair in squares.items():
        k = min(rank, *_sizes(layers[name]))
        finite = (_finite(task, name, total) for total in pair)
        sides[name] = tuple(torch.linalg.eigh(total.double())[1][:, -k:].to(total.dtype) for total in finite)
    return sides


def _captured(task: Task, batch: Examples) -> dict[str, tuple[Tensor, Tensor]]:
    """``{linear layer: (inputs [B, T, in], gradients of the losses in its outputs [B, T, out])}``, from one backward
    pass. A layer that is not used is left out, and one that is used twice has its positions side by side.
    """
    params = {k: v.detach().requires_grad_() for k, v in task.params.items()}
    with watching({name: layer.module for name, layer in _linear(task).items()}) as seen, torch.enable_grad():
        logits, targets = task.outputs_fn(params, batch)
    calls = [(name, given, made) for name, pairs in seen.items() for given, made in pairs]
    u = output_loss.of(task).slope(logits.detach(), targets)
    slopes = torch.autograd.grad(logits, [made for _, _, made in calls], u, materialize_grads=True)
    caught: dict[str, list[tuple[Tensor, Tensor]]] = {}
    for (name, given, _), slope in zip(calls, slopes, strict=True):
        if len(given) != len(targets):
            raise ValueError(
                f"layer {name!r} sees {len(given)} rows for {len(targets)} examples; logra needs the examples first."
            )
        pair = (side.reshape(len(targets), -1, side.shape[-1]) for side in (given, slope))
        caught.setdefault(name, []).append(tuple(pair))
    return {name: tuple(torch.cat(side, dim=1) for side in zip(*pairs, strict=True)) for name, pairs in caught.items()}
