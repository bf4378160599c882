"""The curvature of the loss in the logits, as a handful of vectors a batch that go back through the network.

l_i is the mean cross-entropy over the n_i targets of example i, so its Hessian in the logits z_t of a target position
is ``(diag p_t - p_t p_t^T) / n_i``. Written as a sum of u u^T, and with J_i the Jacobian of the logits of example i,
the Gauss-Newton matrix is the second moment of the *pseudo-gradients* ``J_i^T u``:

    GGN = (1/N) sum_i sum_u (J_i^T u)(J_i^T u)^T

- ``exact``: a vector for every position and class, ``u = sqrt(p_tc / n_i) (p_t - e_c)``: T x C backward passes;
- ``sampled``: one vector, with labels y drawn from the model, ``u_t = (p_t - e_y) / sqrt(n_i)``. Labels of different
  positions are independent and their scores have mean zero, so the second moment is right in expectation;
- ``empirical``: one vector, with the observed labels, ``u_t = (p_t - e_y) / n_i``: the gradient of l_i itself, whose
  second moment is the empirical Fisher. It is not the Gauss-Newton matrix (Kunstner et al. 2019), and with n_i targets
  its size is about 1/n_i of it.

All three take one seeded draw an example and position, derived from the content of the example: sampled labels depend
on neither the order nor the chunks in which a corpus is swept.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import grad

from tda.lm import IGNORE
from tda.task import Examples, Params, Task, chunks, n_examples, take, tensors
from tda.tools.gradients import CHUNK, batch_of, flatten, over_examples

FISHERS = ("exact", "sampled", "empirical")
PASSES = 1000  # most backward passes a batch that the exact kind may take


def require_outputs(task: Task) -> None:
    if task.outputs_fn is None or task.model is None:
        raise ValueError(
            f"the task {task.name!r} has no outputs_fn or no model; this curvature looks at logits and layers. Give "
            f"the task both, or use curvature='empirical_fisher', or 'hessian' with an absolute damping."
        )


def width_of(task: Task, examples: Examples) -> int:
    """T, the number of output positions of the untrimmed examples; 1 for a classifier."""
    require_outputs(task)
    with torch.no_grad():
        return task.outputs_fn(task.params, tensors(take(examples, slice(0, 1))))[1].shape[1]


def label_noise(task: Task, examples: Examples, seed: int) -> Tensor:
    """A uniform draw for every example and position, [N, T] float64, seeded by ``seed`` and the example itself."""
    width, columns = width_of(task, examples), {k: v.numpy() for k, v in sorted(tensors(examples).items())}
    keys = [zlib.crc32(b"".join(v[i].tobytes() for v in columns.values())) for i in range(n_examples(examples))]
    return torch.from_numpy(np.stack([np.random.default_rng([seed, key]).random(width) for key in keys]))


def output_gradients(logits: Tensor, targets: Tensor, fisher: str, noise: Tensor | None = None) -> Iterator[Tensor]:
    """The vectors u, each [B, T, C], for logits [B, T, C] and targets [B, T]; ``noise`` [B, >=T] for ``sampled``."""
    if fisher not in FISHERS:
        raise ValueError(f"fisher={fisher!r}; one of {FISHERS}.")
    p, target, (_, width, classes) = logits.softmax(-1), targets != IGNORE, logits.shape
    share = target.to(p.dtype) / target.sum(1, keepdim=True)
    if fisher == "exact":
        if width * classes > PASSES:
            raise ValueError(
                f"fisher='exact' takes a backward pass for each of {width} positions x {classes} classes; at most "
                f"{PASSES} are allowed. Use fisher='sampled'."
            )
        for position in range(width):
            for c in range(classes):
                u = torch.zeros_like(p)
                away = p[:, position] - F.one_hot(torch.tensor(c), classes)
                u[:, position] = (share[:, position] * p[:, position, c]).sqrt().unsqueeze(1) * away
                yield u
        return
    labels = targets.clamp(min=0)
    if fisher == "sampled":
        cumulated = p.double().cumsum(-1)
        drawn = noise[:, :width].unsqueeze(-1) * cumulated[..., -1:]
        labels, share = (cumulated < drawn).sum(-1).clamp(max=classes - 1), share.sqrt()
    yield share.unsqueeze(-1) * (p - F.one_hot(labels, classes))


def pseudo_gradients(
    task: Task, train: Examples, fisher: str, seed: int = 0, chunk: int = CHUNK, names: tuple[str, ...] = ()
) -> Iterator[Tensor]:
    """Blocks of pseudo-gradients [b, P], whose summed ``rows^T rows`` over N is the Fisher of that kind.

    ``names``: only these parameters, in this order (all by default). Streams: chunk x P x 4 bytes.
    """
    noise = label_noise(task, train, seed)
    moving = {k: task.params[k] for k in names or task.params}

    def pull(params: Params, example: Examples, u: Tensor) -> Tensor:
        logits, _ = task.outputs_fn(task.params | params, {k: v.unsqueeze(0) for k, v in example.items()})
        return (logits[0] * u).sum()

    per_example = over_examples(grad(pull), in_dims=(None, 0, 0))
    for part in chunks(n_examples(train), chunk):
        batch = batch_of(take(train, part))
        with torch.no_grad():
            logits, targets = task.outputs_fn(task.params, batch)
        for u in output_gradients(logits, targets, fisher, noise[part]):
            yield flatten(per_example(moving, batch, u)).detach()
