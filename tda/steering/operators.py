"""What a frozen model says and thinks at every target position, and what steering operators change about it.

The layer is a depth: after ``layer`` of the model's L blocks (0: what enters the first one). The blocks are the longest
``nn.ModuleList`` of the model; a model without one (a classifier) is cut before each of its linear or convolution
layers. At a position with probabilities p = softmax(o), activation h and label y, code k shifts the frozen logits o by

    delta_k = B(h) a_k,        B(h) = ((h - mean) / scale) psi  [r],        a_k [r, C].

With f = log E_p[e^delta] this gives all that is asked of a code:

    loss(o) - loss(o + delta) = delta_y - f,        KL(p || softmax(o + delta)) = f - E_p[delta].
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from torch import Tensor, nn

from tda.curvature.layers import tracked, watching
from tda.output_loss import IGNORE, require_classes
from tda.task import Examples, Task, chunks, n_examples, take
from tda.tools.gradients import CHUNK, batch_of
from tda.tools.memory_limit import require

DEPTH = 0.6  # of the blocks, rounded up: layers 8 of 12, 10 of 16, 12 of 20 and 15 of 24 of the released operators
BLOCK = 1 << 22  # shifted logits held at once: positions x subsets x classes


@dataclass(frozen=True)
class Snapshot:
    """All P target positions of n examples, one example after the other: ``states`` [P, D], ``probabilities`` [P, C],
    ``labels`` [P]; those of example i are ``start[i]:start[i + 1]``. Memory: P x (C + D) x 4 bytes.
    """

    states: Tensor
    probabilities: Tensor
    labels: Tensor
    start: Tensor

    @property
    def weights(self) -> Tensor:
        """1 / number of targets of its example, [P]: a weighted sum over an example's positions is its mean."""
        counts = self.start.diff()
        return (1.0 / counts.to(self.states.dtype)).repeat_interleave(counts)

    @property
    def example(self) -> Tensor:
        """The example of every position, [P]."""
        return torch.arange(len(self.start) - 1).repeat_interleave(self.start.diff())


def places(task: Task) -> list[tuple[str, nn.Module, bool]]:
    """``(name, module, read its output instead of its input)`` of every depth, 0 to L."""
    lists = [(name, m) for name, m in task.model.named_modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        return [(name, layer.module, False) for name, layer in tracked(task).items()]
    name, blocks = max(lists, key=lambda pair: len(pair[1]))
    inputs = [(f"{name}.{i}", block, False) for i, block in enumerate(blocks)]
    return [*inputs, (f"{name}.{len(blocks) - 1}", blocks[-1], True)]


def depth(task: Task, layer: int) -> int:
    """``layer`` itself, or the published depth for -1. Raises ``ValueError`` for a layer that does not exist."""
    last = len(places(task)) - 1
    if not isinstance(layer, int) or not -1 <= layer <= last:
        raise ValueError(
            f"stride: layer={layer}; the task {task.name!r} can be read at depths 0 (its input) to {last} (after its "
            f"last block), or -1 for the published depth, {ceil(DEPTH * last)}."
        )
    return ceil(DEPTH * last) if layer == -1 else layer


def snapshot(task: Task, examples: Examples, layer: int = -1, chunk: int = CHUNK) -> Snapshot:
    """One forward pass over ``examples``. Refuses outputs that are not finite, and after each chunk what would not fit
    into memory if the other examples were as long.
    """
    require_classes(task, "stride", "Choose a method that reads gradients.")
    _, module, after = places(task)[depth(task, layer)]
    states, probabilities, labels, counts = [], [], [], []
    for part in chunks(n_examples(examples), chunk):
        with torch.no_grad(), watching({"layer": module}) as seen:
            logits, targets = task.outputs_fn(task.params, batch_of(take(examples, part)))
        if len(seen["layer"]) != 1:
            raise ValueError(f"stride: layer {layer} is called {len(seen['layer'])} times a pass; choose another.")
        activations = seen["layer"][0][int(after)]
        real = targets != IGNORE
        if targets.shape[1] == 1:
            activations = activations.flatten(1).unsqueeze(1)  # a classifier has one position
        states.append(activations[real])
        probabilities.append(logits[real].softmax(-1))
        labels.append(targets[real])
        counts.append(real.sum(1))
        forecast = int(real.sum()) / len(real) * (n_examples(examples) - part.stop)  # positions still to come
        width = activations.shape[-1] + logits.shape[-1]
        require(forecast * width * logits.element_size(), f"stride: a snapshot of {width} numbers a target position",
                "Give fewer or shorter examples.")  # fmt: skip
    start = torch.cat([torch.zeros(1, dtype=torch.long), torch.cat(counts).cumsum(0)])
    shot = Snapshot(torch.cat(states), torch.cat(probabilities), torch.cat(labels), start)
    if not (shot.states.isfinite().all() and shot.probabilities.isfinite().all()):
        raise ValueError("stride: the model's activations or outputs are not finite. Check its parameters and inputs.")
    return shot


@dataclass(frozen=True)
class Operators:
    """K trained operators: ``measure`` bool [K, n] (which documents each stands for), the ``layer`` they read, ``mean``
    and inverse ``scale`` [D] of its activations, ``readout`` psi [D, r] and ``codes`` [K, r, C].
    """

    measure: np.ndarray
    layer: int
    mean: Tensor
    scale: Tensor
    readout: Tensor
    codes: Tensor

    def read(self, states: Tensor) -> Tensor:
        """B(h) of activations [..., D]: [..., r]."""
        return ((states - self.mean) * self.scale) @ self.readout


def log_mean_exp(p: Tensor, delta: Tensor) -> Tensor:
    """log E_p[e^delta] over the last axis, exact to rounding for small shifts."""
    return torch.log1p((p * torch.expm1(delta)).sum(-1))


def gain(p: Tensor, labels: Tensor, delta: Tensor) -> Tensor:
    """Frozen loss minus steered loss at every position, in nats: ``p`` and ``delta`` [..., C], ``labels`` [...]."""
    return delta.gather(-1, labels.unsqueeze(-1)).squeeze(-1) - log_mean_exp(p, delta)


def divergence(p: Tensor, delta: Tensor) -> Tensor:
    """KL from the frozen to the steered distribution at every position, [...], in nats."""
    return log_mean_exp(p, delta) - (p * delta).sum(-1)


def effects(operators: Operators, shot: Snapshot) -> np.ndarray:
    """y [K, n], float64, in nats: frozen minus steered mean loss of every example under every code. Raises
    ``ValueError`` for activations or outputs of another model, and for codes that have diverged.
    """
    K, rank, classes = operators.codes.shape
    if (shot.states.shape[1], shot.probabilities.shape[1]) != (len(operators.mean), classes):
        raise ValueError(
            f"stride: operators for {len(operators.mean)} activations and {classes} outputs, asked about "
            f"{shot.states.shape[1]} and {shot.probabilities.shape[1]}. Use them with the model they were trained on."
        )
    flat = operators.codes.permute(1, 0, 2).reshape(rank, K * classes)
    read, weights, example = operators.read(shot.states), shot.weights.double(), shot.example
    effect = torch.zeros(len(shot.start) - 1, K, dtype=torch.float64)
    step = max(1, BLOCK // (K * classes))
    for first in range(0, len(read), step):
        part = slice(first, first + step)
        delta = (read[part] @ flat).view(-1, K, classes)
        shift = torch.log1p(torch.bmm(delta.expm1(), shot.probabilities[part].unsqueeze(-1)).squeeze(-1))
        own = delta.gather(-1, shot.labels[part].view(-1, 1, 1).expand(-1, K, 1)).squeeze(-1)
        effect.index_add_(0, example[part], (own - shift).double() * weights[part, None])
    if not effect.isfinite().all():
        raise ValueError("stride: some codes have diverged. Raise stability, or lower rate or steps.")
    return effect.T.numpy()
