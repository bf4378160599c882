"""Per-example gradients, batched by ``vmap(grad)`` in chunks, as flat float32 matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor
from torch.func import grad, vmap

from tda.sequences import alike, trim
from tda.task import Examples, Params, Task, n_examples, say_once, take, tensors

CHUNK = 32  # examples whose gradients are held at once: chunk x parameters x 4 bytes, and as much for activations


def flatten(tree: Params) -> Tensor:
    """A dict of [B, ...] tensors as one matrix [B, P], in the order of the dict."""
    return torch.cat([value.flatten(1) for value in tree.values()], dim=1)


def unflatten(vector: Tensor, like: Params) -> Params:
    """The inverse of a matrix [B, P] (or a vector [P]): a dict of tensors shaped like ``like``, the batch axis kept."""
    parts = vector.split([v.numel() for v in like.values()], dim=-1)
    return {k: part.reshape(*vector.shape[:-1], *v.shape) for part, (k, v) in zip(parts, like.items(), strict=True)}


def batch_of(examples: Examples) -> Examples:
    """The tensors of some examples, without padding that they share."""
    return trim(tensors(examples))


def example_gradient(task: Task) -> Callable[[Params, Examples], Params]:
    """``f(params, example) -> gradient`` of one example's loss; ``example`` has no batch axis."""

    return grad(lambda params, example: task.loss_fn(params, {k: v.unsqueeze(0) for k, v in example.items()}, "sum"))


def over_examples(function: Callable, in_dims: tuple[int | None, ...]) -> Callable:
    """``vmap(function, in_dims)``; where it cannot follow the model (it decides by the values of its inputs, or has
    no batching rule), one example at a time, and says so.
    """
    batched = vmap(function, in_dims)

    def apply(*arguments):
        try:
            return batched(*arguments)
        except RuntimeError as error:
            examples = arguments[in_dims.index(0)]
            size = n_examples(examples) if isinstance(examples, dict) else len(examples)
            try:
                rows = [function(*_row(arguments, in_dims, i)) for i in range(size)]
            except RuntimeError:
                raise error from None
        say_once("vmap cannot follow this model: its gradients are taken one example at a time, which is slower.")
        return {k: torch.stack([row[k] for row in rows]) for k in rows[0]}

    return apply


def _row(arguments: tuple, in_dims: tuple[int | None, ...], i: int) -> list:
    """The arguments of example i: the i-th row of those with an example axis."""

    def row(value):
        return {k: v[i] for k, v in value.items()} if isinstance(value, dict) else value[i]

    return [value if dim is None else row(value) for value, dim in zip(arguments, in_dims, strict=True)]


def blocks(task: Task, examples: Examples, chunk: int = CHUNK) -> Iterator[tuple[np.ndarray, Tensor]]:
    """``(positions [b], gradients [b, P])`` over all examples, at most ``chunk`` at a time and texts of like length
    together (:func:`tda.sequences.alike`); of each example's own mean loss.
    """
    per_example = over_examples(example_gradient(task), in_dims=(None, 0))
    for part in alike(examples, chunk):
        yield part, flatten(per_example(task.params, batch_of(take(examples, part)))).detach()


def matrix(task: Task, examples: Examples, chunk: int = CHUNK) -> Tensor:
    """All gradients [n, P] at once: n x P x 4 bytes. For queries; stream documents with :func:`blocks`."""
    return swept(task, examples, lambda block: block, chunk)


def dot_products(task: Task, train: Examples, queries: Examples, chunk: int = CHUNK) -> Tensor:
    """``<grad l_q, grad l_i>`` for all pairs, [Q, N]. Holds the Q query gradients and one block of documents."""
    query_gradients = matrix(task, queries, chunk)
    return swept(task, train, lambda block: block @ query_gradients.T, chunk).T


def swept(task: Task, examples: Examples, function: Callable[[Tensor], Tensor], chunk: int = CHUNK) -> Tensor:
    """``function`` of the gradients of every example, rows [b, ...] -> [b, ...], in the order of the examples."""
    found = None
    for part, block in blocks(task, examples, chunk):
        rows = function(block)
        found = rows.new_empty(n_examples(examples), *rows.shape[1:]) if found is None else found
        found[torch.from_numpy(part)] = rows
    return found
