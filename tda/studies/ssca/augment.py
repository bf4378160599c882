"""Copies of images with some regions filled: which regions, and with what."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tda.studies.ssca.regions import Grid
from tda.studies.ssca.scenes import CLASSES, backgrounds

FILLS = ("black", "mean", "noise", "natural")


def filling(kind: str, images: Tensor, rng: np.random.Generator) -> Tensor:
    """What is put where a region was, like ``images`` [N, 3, side, side].

    black: 0. mean: the image's own mean colour. noise: uniform in [0, 1]. natural: a picture without an object, whose
    background is of any kind, whatever the class.
    """
    if kind == "black":
        return torch.zeros_like(images)
    if kind == "mean":
        return images.mean((-2, -1), keepdim=True).expand_as(images)
    if kind == "noise":
        return torch.from_numpy(rng.random(images.shape, dtype=np.float32))
    if kind == "natural":
        return backgrounds(rng.integers(0, CLASSES, len(images)), rng)
    raise ValueError(f"fill {kind!r}; one of {', '.join(FILLS)}.")


def erasing(images: int, grid: Grid, rng: np.random.Generator) -> Tensor:
    """Random erasing as an order of regions, [images, n]: those next to a random point first, which makes a blot."""
    row, column = np.divmod(np.arange(grid.count), grid.across)
    centre = rng.uniform(-0.5, grid.across - 0.5, (images, 2, 1))
    distance = (row - centre[:, 0]) ** 2 + (column - centre[:, 1]) ** 2
    return torch.from_numpy(distance.argsort(1))


def borrowed(order: Tensor, sizes: Tensor, rng: np.random.Generator) -> Tensor:
    """The orders [N, n] of other images with flip sets of the same size (an image's own where it is the only one)."""
    found = order.clone()
    for size in sizes.unique():
        members = torch.from_numpy(rng.permutation((sizes == size).nonzero().flatten().numpy()))
        found[members] = order[members.roll(1)]
    return found


def augmentable(sizes: Tensor, most: int) -> tuple[Tensor, str]:
    """Which images have a flip set of 1 to ``most`` regions, [N] bool, and one line on the others, which get no copy.

    Raises ``ValueError`` if none has.
    """
    used, wrong, stubborn = (sizes >= 1) & (sizes <= most), int((sizes == 0).sum()), int((sizes > most).sum())
    line = (
        f"{int(used.sum())} of {len(sizes)} images get a copy; {stubborn} keep their prediction within {most} regions, "
        f"{wrong} are wrong as they are"
    )
    if not used.any():
        raise ValueError(f"{line}. Raise the area cap, or train the model better.")
    return used, line
