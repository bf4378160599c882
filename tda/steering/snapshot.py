"""What a frozen model says and thinks at every target position of some examples: labels, probabilities, activations.

The layer is a depth: after ``layer`` of the model's L blocks (0: what enters the first one). The blocks are the longest
``nn.ModuleList`` of the model; a model without one (a classifier) is cut before each of its linear or convolution
layers, so that L is the number of its hidden layers and depth 0 is the input itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor, nn

from tda.curvature.layers import tracked, watching
from tda.output_loss import IGNORE, require_classes
from tda.task import Examples, Task, chunks, n_examples, take
from tda.tools.gradients import CHUNK, batch_of
from tda.tools.memory_limit import require

DEPTH = 0.6  # of the blocks, rounded up: layers 8 of 12, 10 of 16, 12 of 20 and 15 of 24 of the released operators


@dataclass(frozen=True)
class Snapshot:
    """All P target positions of n examples, one example after the other.

    ``states`` [P, D], ``probabilities`` [P, C], ``labels`` [P]; the positions of example i are
    ``start[i]:start[i + 1]``. Memory: P x (C + D) x 4 bytes.
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
    """One forward pass over ``examples``, ``chunk`` at a time. Refuses outputs that are not finite, and
    after each chunk what would not fit into memory if the other examples were as long.
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
