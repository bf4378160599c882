"""The Gauss-Newton matrix as the second moment of *pseudo-gradients*.

With u the vectors of :mod:`tda.output_loss` and J_i the Jacobian of the outputs of example i,

    GGN = (1/N) sum_i sum_u (J_i^T u)(J_i^T u)^T

The sampled kind takes one seeded draw an example, derived from its content: it depends on neither order nor chunks.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.func import grad

from tda import output_loss
from tda.task import Examples, Params, Task, chunks, n_examples, take, tensors
from tda.tools.gradients import CHUNK, batch_of, flatten, over_examples


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
    """What the sampled Fisher draws for every example, [N, T, ...] float64, seeded by ``seed`` and the example."""
    shape, columns = shape_of(task, examples), {k: v.numpy() for k, v in sorted(tensors(examples).items())}
    keys = [zlib.crc32(b"".join(v[i].tobytes() for v in columns.values())) for i in range(n_examples(examples))]
    draw = output_loss.of(task).noise
    return torch.from_numpy(np.stack([draw(np.random.default_rng([seed, key]), *shape) for key in keys]))


def pseudo_gradients(
    task: Task, train: Examples, fisher: str, seed: int = 0, chunk: int = CHUNK, names: tuple[str, ...] = ()
) -> Iterator[Tensor]:
    """Blocks of pseudo-gradients [b, P], whose summed ``rows^T rows`` over N is the Fisher of that kind.

    ``names``: only these parameters, in this order (all by default). Streams: chunk x P x 4 bytes.
    """
    noise, loss = label_noise(task, train, seed), output_loss.of(task)
    moving = {k: task.params[k] for k in names or task.params}

    def pull(params: Params, example: Examples, u: Tensor) -> Tensor:
        outputs, _ = task.outputs_fn(task.params | params, {k: v.unsqueeze(0) for k, v in example.items()})
        return (outputs[0] * u).sum()

    per_example = over_examples(grad(pull), in_dims=(None, 0, 0))
    for part in chunks(n_examples(train), chunk):
        batch = batch_of(take(train, part))
        with torch.no_grad():
            outputs, targets = task.outputs_fn(task.params, batch)
        for u in loss.vectors(outputs, targets, fisher, noise[part]):
            yield flatten(per_example(moving, batch, u)).detach()
