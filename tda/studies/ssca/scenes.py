"""Small scenes whose causes are known: an object of four parts, each of which tells the class, on a background that
goes with the class in training.

A part is a glyph of 4 x 4 pixels of its own for every class and place; the first is drawn at full strength and the
others fainter, so that a model can get by on the first. A background is a colour with stripes, one kind for every
class. Whoever has learnt all parts, and none of the background, is right on every set of :func:`sets`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

CLASSES, PARTS, SIDE, PART = 6, 4, 16, 4
CORNERS = ((0, 0), (0, 5), (5, 0), (5, 5))  # of the parts within the object, which is 9 pixels wide
STRENGTHS = (0.95, 0.6, 0.6, 0.6)  # how opaque each part is
WARM, COOL = ((0.85, 0.6, 0.1), (1.0, 0.9, 0.5)), ((0.0, 0.05, 0.3), (0.3, 0.35, 0.6))  # ranges of red, green, blue
AGREEMENT = 0.75  # share of the training scenes whose background is that of their class
SETS = ("same", "background", "occlusion", "style", "noise", "blur")


@dataclass(frozen=True)
class Scenes:
    """``pixels`` [N, 3, 16, 16] in [0, 1], ``labels`` [N], ``parts`` [N, 4, 16, 16] bool (where each part is drawn, all
    False if it is not), ``background`` [N] its kind.
    """

    pixels: Tensor
    labels: Tensor
    parts: Tensor
    background: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, chosen) -> Scenes:
        return Scenes(self.pixels[chosen], self.labels[chosen], self.parts[chosen], self.background[chosen])


def glyphs() -> np.ndarray:
    """The parts [class, place, 4, 4] bool: 8 of 16 pixels each, drawn once and the same for every seed."""
    order = np.random.default_rng(52).permuted(np.tile(np.arange(PART**2), (CLASSES * PARTS, 1)), axis=1)
    return (order < PART**2 // 2).reshape(CLASSES, PARTS, PART, PART)


def backgrounds(kinds: np.ndarray, rng: np.random.Generator) -> Tensor:
    """Pictures [N, 3, 16, 16] without an object: a colour and the direction of stripes by their kind, and noise."""
    kinds = np.asarray(kinds)[:, None, None]
    angle, hue = np.pi * kinds / CLASSES, 2 * np.pi * kinds / CLASSES
    row, column = np.mgrid[:SIDE, :SIDE][:, None]
    phase = rng.uniform(0, 2 * np.pi, kinds.shape)
    stripes = np.sin(2 * np.pi / 5 * (np.cos(angle) * column + np.sin(angle) * row) + phase)
    light = rng.uniform(0.3, 0.45, kinds.shape)
    channels = [light + 0.05 * stripes + 0.04 * np.cos(hue + turn) for turn in (0, 2 * np.pi / 3, 4 * np.pi / 3)]
    pixels = np.stack(channels, 1) + rng.normal(0, 0.05, (len(kinds), 3, SIDE, SIDE))
    return torch.from_numpy(pixels.clip(0, 1).astype(np.float32))


def draw(n: int, rng: np.random.Generator, agreement: float = AGREEMENT, shown: int = PARTS, colours=WARM) -> Scenes:
    """``n`` scenes, all classes equally often, in random order.

    ``agreement``: share whose background is that of the class; the others have that of another class. ``shown``: how
    many of the four parts are drawn, chosen at random. ``colours``: lowest and highest red, green, blue of the object.
    """
    labels = rng.permutation(np.arange(n) % CLASSES)
    other = (labels + rng.integers(1, CLASSES, n)) % CLASSES
    kinds = np.where(rng.random(n) < agreement, labels, other)
    canvas = backgrounds(kinds, rng)
    colour = torch.from_numpy(rng.uniform(*colours, (n, 3)).astype(np.float32))
    place = rng.integers(0, SIDE - 8, (n, 2))
    drawn = rng.permuted(np.tile(np.arange(PARTS), (n, 1)), axis=1) < shown
    shapes, parts = glyphs()[labels], np.zeros((n, PARTS, SIDE, SIDE), bool)
    for p, (down, right) in enumerate(CORNERS):
        for i, (row, column) in enumerate(place + (down, right)):
            parts[i, p, row : row + PART, column : column + PART] = shapes[i, p] & drawn[i, p]
    parts = torch.from_numpy(parts)
    opaque = (parts * torch.tensor(STRENGTHS)[:, None, None]).sum(1, keepdim=True)
    pixels = canvas * (1 - opaque) + colour[:, :, None, None] * opaque
    return Scenes(pixels, torch.from_numpy(labels), parts, torch.from_numpy(kinds))


def sets(n: int, rng: np.random.Generator, agreement: float = AGREEMENT) -> dict[str, Scenes]:
    """Test sets of ``n`` scenes by the names of :data:`SETS`.

    Like training; the background always of another class; two of four parts; the object dark and cool instead of light
    and warm; the first set with noise of deviation 0.1; and the first set half blurred (by means of 3 x 3 pixels).
    """
    same = draw(n, rng, agreement)
    noise = torch.from_numpy(rng.normal(0, 0.1, same.pixels.shape).astype(np.float32))
    smooth = F.avg_pool2d(F.pad(same.pixels, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    parts = (
        same,
        draw(n, rng, 0.0),
        draw(n, rng, agreement, shown=2),
        draw(n, rng, agreement, colours=COOL),
        replace(same, pixels=(same.pixels + noise).clamp(0, 1)),
        replace(same, pixels=(same.pixels + smooth) / 2),
    )
    return dict(zip(SETS, parts, strict=True))
