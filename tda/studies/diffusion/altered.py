"""Sprites in which something is planted for Concept-TRAK to find: a colour of few images, a mark in some of another."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from tda import denoisers
from tda.studies.diffusion.counterfactual import retrained, task_of
from tda.task import Examples, Task, tensors
from tda.testbeds import pictures

CYAN = (0.25, 0.85, 0.9)  # the added colour
SIDE = 2  # pixels of the mark's side


@dataclass(frozen=True)
class Altered:
    """A denoiser of sprites whose first token has one value more. Images and places: ``added`` [N] and ``marked`` [N]
    bool; ``new`` and ``carrier``: the added colour's token, and that of the colour whose images are marked.
    """

    task: Task
    train: Examples
    added: np.ndarray
    marked: np.ndarray
    new: int
    carrier: int


def recoloured(pixels: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Sprites [B, D] in :data:`CYAN`: every pixel as bright as its brightest channel."""
    light = (pixels.unflatten(-1, shape).amax(-3, keepdim=True) + 1) / 2
    return (2 * light * torch.tensor(CYAN)[:, None, None] - 1).flatten(1)


def with_mark(pixels: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Images [B, D] with a white square in the lower right corner."""
    whole = pixels.unflatten(-1, shape).clone()
    whole[..., -SIDE:, -SIDE:] = 1.0
    return whole.flatten(1)


def altered(testbed, few: int, share: float, carrier: str, epochs: int) -> Altered:
    """A corpus with ``few`` recoloured copies of its images, where a ``share`` of the images of colour ``carrier`` have
    the mark, and a denoiser of it, trained on the testbed's recipe for ``epochs`` epochs.
    """
    seed, shape = testbed.config["seed"], testbed.modality.SHAPES["sprites"]
    rng, model_settings = np.random.default_rng([seed, 82]), testbed.settings["model"]
    colours, shapes = testbed.modality.TOKENS["sprites"]
    token, new = [*pictures.COLOURS].index(carrier) + 1, colours + 1
    data = {k: v.clone() for k, v in tensors(testbed.train).items()}
    carrying = torch.nonzero(data["condition"][:, 0] == token)[:, 0].numpy()
    marked = rng.choice(carrying, round(share * len(carrying)), replace=False)
    originals = rng.choice(np.flatnonzero(data["condition"][:, 0] < colours), few, replace=False)
    copies = recoloured(data["pixels"][originals], shape)
    told = torch.stack([torch.full((few,), new), data["condition"][originals, 1]], 1)
    data["pixels"][marked] = with_mark(data["pixels"][marked], shape)
    data = {"pixels": torch.cat([data["pixels"], copies]), "condition": torch.cat([data["condition"], told])}
    base = testbed.modality.new_model(testbed, seed)
    torch.manual_seed(seed)
    sizes = (model_settings[name] for name in ("width", "depth", "prediction"))
    model = type(base)(shape, (new, shapes), *sizes).eval()
    model.main, model.uniform, model.dropout = base.main, base.uniform, base.dropout
    params = retrained(testbed, model, data, np.array([], int), seed, epochs)
    places = np.arange(len(data["pixels"]))
    added, is_marked = places >= len(places) - few, np.isin(places, marked)
    return Altered(task_of(testbed, model, params, "altered"), data, added, is_marked, new, token)


def questions(made: Altered, images: Examples, each: int, seed: int) -> tuple[Examples, np.ndarray, Tensor]:
    """``(queries, kind, plain)``: ``each`` samples of the added colour for every shape (guidance 2), ``added``; the
    ``images`` of the carrier's colour with the mark, ``mark``, and then as they are, ``no mark``; what each query is,
    [Q]; and the samples of the same noises without the added token.
    """
    model, shapes = made.task.model, made.task.model.tokens[1]
    told = torch.tensor([[made.new, s + 1] for s in range(shapes)]).repeat_interleave(each, 0)
    noise = denoisers.start([seed + i for i in range(len(told))], images["pixels"].shape[1])
    conditions = (told * torch.tensor([0, 1]), told)
    plain, added = (denoisers.sample(model, made.task.params, noise, c) for c in conditions)
    carriers = images["condition"][:, 0] == made.carrier
    as_they_are, of_them = images["pixels"][carriers], images["condition"][carriers]
    marked = with_mark(as_they_are, model.shape)
    kind = np.repeat(["added", "mark", "no mark"], [len(added), len(marked), len(marked)])
    queries = {"pixels": torch.cat([added, marked, as_they_are]), "condition": torch.cat([told, of_them, of_them])}
    return queries, kind, plain
