"""How training images notice that a denoiser has moved: their losses before and after, draw of noise by draw.

With l_ij the squared error per pixel of image i in draw j of J under the task's model, and u_ij under a moved one,

    skew(i) = (1/J) sum_j (u_ij - l_ij) / (u_ij + l_ij + 1e-3)        difference(i) = (1/J) sum_j (u_ij - l_ij).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tda import denoisers
from tda.task import Examples, Params, Task, chunks, n_examples
from tda.tools.gradients import CHUNK
from tda.tools.options import Count, Whole, one_of, option

SCORES, PARAMETERS, NOISES = ("skew", "difference"), ("all", "mlp"), ("consistent", "per_image", "fresh")
FLOOR = 1e-3  # of the skew's denominator, as MUCS publishes it
MLP = r"layers\.\d+\.weight"  # of both nets of tda.denoiser_nets; MUCS moves the weights of a transformer's MLPs


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the losses of the training images are compared before and after a model has moved."""

    seed: Whole = option(0, "of all draws")
    chunk: Count = option(CHUNK, "training images whose losses are formed together")
    score: one_of(SCORES) = option("skew", "the normalised change of a loss, or the change itself")
    parameters: one_of(PARAMETERS) = option("all", "what moves: everything, or the weights of the residual layers")
    noise: one_of(NOISES) = option(
        "consistent",
        "one noise for all images, before and after; its own for each image; or its own, and drawn anew after, where "
        "losses are averaged over the draws before they are compared",
    )
    draws: Count = option(100, "J, each at a timestep of its own")
    t_min: Whole = option(91, "the least noisy timestep")
    t_max: Whole = option(999, "the noisiest")

    def timesteps(self) -> Tensor:
        """[J] int64, evenly spaced."""
        if self.t_min > self.t_max:
            raise ValueError(f"t_min={self.t_min} and t_max={self.t_max}; t_min must be at most t_max.")
        found = torch.from_numpy(np.linspace(self.t_min, self.t_max, self.draws).round().astype(np.int64))
        denoisers.check_timesteps(found)
        return found


def check_denoiser(task: Task) -> None:
    """Refuse a task whose loss draws no noise in training."""
    if not hasattr(task.loss_fn, "redrawn"):
        raise ValueError(
            f"the loss of task {task.name!r} draws no noise: this method is for denoisers. Make the loss with "
            f"tda.denoisers.denoising_loss, or choose another method."
        )


def moving_names(task: Task, parameters: str) -> list[str]:
    """Names of the parameters that move."""
    names = [name for name in task.params if parameters == "all" or re.fullmatch(MLP, name)]
    if not names:
        raise ValueError(
            f"parameters='mlp': task {task.name!r} has no parameter named like 'layers.0.weight'; it has "
            f"{list(task.params)[:3]} ... Use parameters='all'."
        )
    return names


def before_and_after(task: Task, models: list[Params], train: Examples, reading: Reading) -> tuple[Tensor, Tensor]:
    """Losses of the training images in every draw: [N, J] under the task's model, [Q, N, J] under Q others."""
    if reading.noise == "fresh":
        return draw_losses(task, [task.params], train, reading, 0)[0], draw_losses(task, models, train, reading, 1)
    both = draw_losses(task, [task.params, *models], train, reading, 0)
    return both[0], both[1:]


def draw_losses(task: Task, models: list[Params], train: Examples, reading: Reading, side: int) -> Tensor:
    """Losses [M, N, J] under M models; ``side`` 0 before, 1 after, which only fresh noise tells apart. A chunk of
    images and its noise are made once, and shown to one model after the other.
    """
    timesteps, shape, n = reading.timesteps(), (reading.draws, train["pixels"].shape[1]), n_examples(train)
    shared = np.random.default_rng([reading.seed, 55]).standard_normal(shape, np.float32)
    stream = [reading.seed, 56, side if reading.noise == "fresh" else 0]
    found = torch.empty(len(models), n, reading.draws)
    for part in chunks(n, reading.chunk):
        images, rows = {k: train[k][part] for k in ("pixels", "condition")}, range(n)[part]
        if reading.noise == "consistent":
            mine = denoisers.own((timesteps, torch.from_numpy(shared)), len(rows))
        else:
            noise = [np.random.default_rng([*stream, i]).standard_normal(shape, np.float32) for i in rows]
            mine = {"timesteps": timesteps.expand(len(rows), -1), "noise": torch.from_numpy(np.stack(noise))}
        with torch.no_grad():
            for losses, params in zip(found, models, strict=True):
                losses[part] = task.loss_fn(params, images | mine, "token")
    return found


def compared(before: Tensor, after: Tensor, reading: Reading) -> np.ndarray:
    """Scores [Q, N] of losses [N, J] and [Q, N, J]."""
    if reading.noise == "fresh":
        before, after = before.mean(-1, keepdim=True), after.mean(-1, keepdim=True)
    change = after - before
    if reading.score == "skew":
        change = change / (after + before + FLOOR)
    return change.mean(-1).numpy()
