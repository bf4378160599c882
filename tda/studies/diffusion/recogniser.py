"""Does an image show a colour, a shape? A small classifier that has never seen the denoiser or its training images."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tda.task import Examples
from tda.testbeds import images, pictures

RATE, BATCH = 3e-3, 64


class Recogniser(nn.Module):
    """Two convolutions and a linear layer: ``forward(images [B, D]) -> [B, sum(counts)]``, log-odds of all values of
    the factors, which have ``counts`` values each.
    """

    def __init__(self, shape: tuple[int, int, int], counts: tuple[int, ...], width: int = 16) -> None:
        super().__init__()
        self.shape, self.counts = shape, counts
        self.first = nn.Conv2d(shape[0], width, 3, padding=1)
        self.second = nn.Conv2d(width, 2 * width, 3, padding=1)
        self.last = nn.Linear(2 * width * (shape[1] // 4) * (shape[2] // 4), sum(counts))

    def forward(self, pixels: Tensor) -> Tensor:
        seen = F.max_pool2d(F.silu(self.first(pixels.unflatten(-1, self.shape))), 2)
        return self.last(F.max_pool2d(F.silu(self.second(seen)), 2).flatten(1))

    def probabilities(self, pixels: Tensor) -> list[Tensor]:
        """Of the values of every factor, [B, count] each; value v of a token stands in column v - 1."""
        with torch.no_grad():
            return [part.softmax(-1) for part in self(pixels).split(self.counts, -1)]

    def accuracy(self, examples: Examples) -> list[float]:
        """Share of images whose value is the most probable one, of every factor."""
        tokens = examples["condition"].T - 1
        found = self.probabilities(examples["pixels"])
        return [float((p.argmax(-1) == t).float().mean()) for p, t in zip(found, tokens, strict=True)]


def drawn(each: int, seed: int) -> Examples:
    """Sprites of all 30 combinations, the diagonal and the rare colour too, drawn for this purpose alone."""
    rng, colours = np.random.default_rng([seed, 81]), [*pictures.COLOURS, pictures.RARE]
    rows = [pictures.sprite(a, b, rng) for a in colours for b in pictures.SHAPES for _ in range(each)]
    return images.encode({name: [row[name] for row in rows] for name in rows[0]})


def augmented(pixels: Tensor, shape: tuple[int, int, int], rng: torch.Generator) -> Tensor:
    """Images [B, D] moved by up to a pixel, paler or brighter, and with noise of a random strength up to 0.4."""
    down, right = (int(torch.randint(-1, 2, (1,), generator=rng)) for _ in range(2))
    moved = pixels.unflatten(-1, shape).roll((down, right), (-2, -1)).flatten(1)
    light, strength = torch.rand(2, len(pixels), 1, generator=rng)
    moved = (moved + 1) * (0.8 + 0.3 * light) - 1
    return (moved + 0.4 * strength * torch.randn(pixels.shape, generator=rng)).clamp(-1, 1)


def trained(
    examples: Examples, shape: tuple[int, int, int], counts: tuple[int, ...], epochs: int, seed: int
) -> Recogniser:
    """A recogniser of clean images [B, D] with their conditions, taught on augmented ones."""
    torch.manual_seed(seed)
    model, rng = Recogniser(shape, counts), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    for _ in range(epochs):
        for part in torch.randperm(len(examples["pixels"]), generator=rng).split(BATCH):
            heads = model(augmented(examples["pixels"][part], shape, rng)).split(counts, -1)
            tokens = (examples["condition"][part] - 1).T
            optimizer.zero_grad()
            sum(F.cross_entropy(head, token) for head, token in zip(heads, tokens, strict=True)).backward()
            optimizer.step()
    return model.eval()
