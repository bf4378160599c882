"""Nets that denoise small images; timestep and condition scale and shift their layers (:mod:`tda.denoisers`)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

STEPS = 1000  # timesteps of the schedule
PREDICTIONS = ("noise", "image")


class Denoiser(nn.Module):
    """What the nets share: ``forward(noisy [..., D], timesteps [...], condition [..., 2]) -> [..., D]``.

    ``shape``: channels, height, width; ``tokens``: values of the two tokens, without 0. The output is the net's plus a
    learnt multiple (by timestep and condition) of x_t: noise has as many dimensions as pixels, more than a narrow net.
    """

    def __init__(self, shape: tuple[int, int, int], tokens: tuple[int, int], code: int, prediction: str) -> None:
        super().__init__()
        if prediction not in PREDICTIONS:
            raise ValueError(f"prediction={prediction!r}; one of {PREDICTIONS}.")
        self.shape, self.tokens, self.prediction = shape, tokens, prediction
        rates = torch.logspace(0, 2, 16) * torch.pi / 2  # from a quarter of a wave over all timesteps to 25 waves
        waves = torch.arange(STEPS).unsqueeze(1) / STEPS * rates
        self.register_buffer("times", torch.cat([waves.sin(), waves.cos()], 1), persistent=False)
        for place, count in enumerate(tokens):
            self.register_buffer(f"token_{place}", torch.eye(count + 1)[:, 1:], persistent=False)  # 0 is no token
        self.code = nn.Linear(32 + sum(tokens), code)
        self.skip = nn.Linear(code, 1)

    def coded(self, timesteps: Tensor, condition: Tensor) -> Tensor:
        """Timestep and condition as a vector [..., code]."""
        parts = [self.times[timesteps], self.token_0[condition[..., 0]], self.token_1[condition[..., 1]]]
        return F.silu(self.code(torch.cat(parts, -1)))


class FilmMLP(Denoiser):
    """Residual layers of one width, each scaled and shifted by the code (FiLM: Perez et al. 2018)."""

    def __init__(self, shape, tokens, width: int, depth: int, prediction: str = "noise", code: int = 64) -> None:
        super().__init__(shape, tokens, code, prediction)
        pixels = int(np.prod(shape))
        self.enter, self.leave = nn.Linear(pixels, width), nn.Linear(width, pixels)
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(depth))
        self.film = nn.ModuleList(nn.Linear(code, 2 * width) for _ in range(depth))

    def hidden(self, noisy: Tensor, code: Tensor) -> Tensor:
        """What the last layer sees, [..., width]."""
        h = self.enter(noisy)
        for layer, film in zip(self.layers, self.film, strict=True):
            scale, shift = film(code).chunk(2, -1)
            h = h + F.silu(layer(h) * (1 + scale) + shift)
        return h

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        code = self.coded(timesteps, condition)
        return self.leave(self.hidden(noisy, code)) + self.skip(code) * noisy


class FilmConv(Denoiser):
    """3x3 convolutions of ``width`` channels on blocks of 2x2 pixels, each scaled and shifted by the code: what it says
    about a pixel depends on what is at most 2 (depth + 2) + 1 pixels away.
    """

    def __init__(self, shape, tokens, width: int, depth: int, prediction: str = "noise", code: int = 64) -> None:
        super().__init__(shape, tokens, code, prediction)
        if shape[1] % 2 or shape[2] % 2:
            raise ValueError(f"images of {shape[1]} x {shape[2]}; a convolutional denoiser takes even sizes.")
        blocks = 4 * shape[0]
        self.enter, self.leave = nn.Conv2d(blocks, width, 3, padding=1), nn.Conv2d(width, blocks, 3, padding=1)
        self.layers = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(depth))
        self.film = nn.ModuleList(nn.Linear(code, 2 * width) for _ in range(depth))

    def hidden(self, noisy: Tensor, code: Tensor) -> Tensor:
        """What the last layer sees, [B, width, height / 2, width / 2], of [B, D]."""
        h = self.enter(F.pixel_unshuffle(noisy.unflatten(-1, self.shape), 2))
        for layer, film in zip(self.layers, self.film, strict=True):
            scale, shift = film(code)[..., None, None].chunk(2, -3)
            h = h + F.silu(layer(h) * (1 + scale) + shift)
        return h

    def forward(self, noisy: Tensor, timesteps: Tensor, condition: Tensor) -> Tensor:
        code = self.coded(timesteps, condition)
        h = self.hidden(noisy.flatten(0, -2), code.flatten(0, -2))
        return F.pixel_shuffle(self.leave(h), 2).reshape(noisy.shape) + self.skip(code) * noisy
