"""Dot products of gradients without the gradients, where the network allows it.

The gradient of a linear layer that an example passes once is ``G = g a^T``, with g what comes back and a what goes in
(the bias as one more coordinate). Hence

    <G_q, G_i> = (g_q . g_i) (a_q . a_i)

and no gradient is ever formed. A classifier of linear layers consists of nothing else; convolutions and sequences pass
a layer at many positions, and their gradients are formed (:mod:`tda.tools.gradients`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from tda.curvature.layers import Layer, passes, trackable, untracked, watching
from tda.curvature.outputs import shape_of
from tda.task import Examples, Task, chunks, n_examples, take
from tda.tools import gradients
from tda.tools.gradients import CHUNK, batch_of

AT_ONCE = 512  # examples whose layers are captured together; they hold inputs and slopes only


def dot_products(task: Task, train: Examples, queries: Examples, chunk: int = CHUNK) -> Tensor:
    """``<grad l_q, grad l_i>`` for all pairs, [Q, N].

    Memory: N x (inputs + outputs of all layers), or where gradients are formed (Q + ``chunk``) x P numbers.
    """
    layers = _single_pass(task, train)
    if not layers:
        return gradients.dot_products(task, train, queries, chunk)
    query_sides, train_sides = (_sides(task, examples, layers) for examples in (queries, train))
    return sum((g @ train_sides[name][1].T) * (a @ train_sides[name][0].T) for name, (a, g) in query_sides.items())


def _single_pass(task: Task, train: Examples) -> dict[str, Layer]:
    """The layers of a network that consists of linear layers, each passed once by an example; else nothing."""
    layers = trackable(task) if task.outputs_fn is not None and task.model is not None else {}
    if not layers or untracked(task, layers) or shape_of(task, train)[0] > 1:
        return {}
    with watching({name: layer.module for name, layer in layers.items()}) as seen, torch.no_grad():
        task.outputs_fn(task.params, batch_of(take(train, slice(0, 2))))
    count = min(2, n_examples(train))
    each = ((seen[name], layer.shape[0] * count) for name, layer in layers.items())
    once = (len(calls) == 1 and len(calls[0][0]) == count and calls[0][1].numel() == size for calls, size in each)
    return layers if all(once) else {}


def _sides(task: Task, examples: Examples, layers: dict[str, Layer]) -> dict[str, tuple[Tensor, Tensor]]:
    """``{layer: (a [n, in + 1], g [n, out])}`` of every example."""
    parts = [
        captured
        for part in chunks(n_examples(examples), AT_ONCE)
        for captured, _ in passes(task, batch_of(take(examples, part)), layers, "empirical")
    ]
    return {
        name: tuple(torch.cat([part[name][side] for part in parts]).squeeze(1) for side in (0, 1)) for name in layers
    }
