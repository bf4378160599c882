"""Small images as pictures that can be looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

GREY = 0.75  # between the images of a mosaic


def picture(image: Tensor | np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Pixels [D] in [-1, 1] as [height, width, 3] in [0, 1]; grey images, dark on light as they were written."""
    values = (np.asarray(image, np.float32).reshape(shape).transpose(1, 2, 0).clip(-1, 1) + 1) / 2
    return values if shape[0] == 3 else np.repeat(1 - values, 3, 2)


def mosaic(images: Tensor | np.ndarray, shape: tuple[int, int, int], columns: int) -> np.ndarray:
    """Images [B, D] row by row in one picture, ``columns`` a row, with grey lines between them."""
    rows = -(-len(images) // columns)
    height, width = shape[1] + 1, shape[2] + 1
    whole = np.full((rows * height + 1, columns * width + 1, 3), GREY, np.float32)
    for place, image in enumerate(images):
        top, left = place // columns * height + 1, place % columns * width + 1
        whole[top : top + shape[1], left : left + shape[2]] = picture(image, shape)
    return whole


def hang(ax, images: Tensor | np.ndarray, shape: tuple[int, int, int], columns: int, title: str = "") -> None:
    """A mosaic on an axis."""
    ax.imshow(mosaic(images, shape, columns), interpolation="nearest")
    ax.set_title(title)
    ax.axis("off")


def labelled(ax, images: Tensor | np.ndarray, shape: tuple[int, int, int], labels: Sequence[str]) -> None:
    """One mosaic of a row for every label, the label on its left: images [rows x columns, D]."""
    ax.imshow(mosaic(images, shape, len(images) // len(labels)), interpolation="nearest")
    ax.set_yticks([(shape[1] + 1) * (i + 0.5) for i in range(len(labels))], labels)
    ax.set_xticks([])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)


def nearest(images: Tensor, train: Tensor, leave_out_self: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Euclidean distance [B] of images [B, D] to the nearest of ``train`` [N, D], and its place [B].

    ``leave_out_self``: ``images`` are ``train``, and an image is not its own neighbour.
    """
    distances = torch.cdist(images, train, compute_mode="donot_use_mm_for_euclid_dist")
    if leave_out_self:
        distances.fill_diagonal_(torch.inf)
    found = distances.min(1)
    return found.values.numpy(), found.indices.numpy()
