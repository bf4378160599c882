"""Images cut into the squares of a grid, some of which are hidden."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """The squares of ``cell`` pixels of images of ``side`` pixels, numbered row by row.

    Raises ``ValueError`` for a cell that does not divide the image.
    """

    side: int
    cell: int

    def __post_init__(self) -> None:
        if not 1 <= self.cell <= self.side or self.side % self.cell:
            fitting = [size for size in range(1, self.side + 1) if self.side % size == 0]
            raise ValueError(
                f"cells of {self.cell} pixels do not divide an image of {self.side}; take one of {fitting}."
            )

    @property
    def across(self) -> int:
        return self.side // self.cell

    @property
    def count(self) -> int:
        return self.across**2

    def pixels(self, chosen: Tensor) -> Tensor:
        """Of regions [..., n] bool the pixels [..., side, side] bool."""
        squares = chosen.unflatten(-1, (self.across, self.across))
        return squares.repeat_interleave(self.cell, -2).repeat_interleave(self.cell, -1)

    def most(self, cap: float) -> int:
        """The most regions that cover no more than the share ``cap`` of the image. Raises ``ValueError`` unless it lies
        in (0, 1] and has room for one.
        """
        if not 0 < cap <= 1:
            raise ValueError(f"area cap {cap}; give a share of the image in (0, 1], for example 0.5.")
        if cap * self.count < 1:
            raise ValueError(
                f"area cap {cap} is less than one of {self.count} regions; raise it or take smaller cells."
            )
        return int(cap * self.count + 1e-9)


def hide(images: Tensor, pixels: Tensor, filling: Tensor | float = 0.0) -> Tensor:
    """Images [..., 3, side, side] with ``filling`` where ``pixels`` [..., side, side] is True."""
    return torch.where(pixels.unsqueeze(-3), filling, images)


def first(order: Tensor, sizes: Tensor | int) -> Tensor:
    """Of rankings [N, n], each a permutation of the regions, the first ``sizes`` [N]: [N, n] bool."""
    places = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1]).expand_as(order))
    return places < torch.as_tensor(sizes).reshape(-1, 1)


def some_part_whole(parts: Tensor, hidden: Tensor) -> Tensor:
    """[N] bool: at least one of the ``parts`` [N, P, side, side] of an image that are drawn (have a pixel) has no pixel
    that is ``hidden`` [N, side, side].
    """
    drawn, touched = parts.flatten(-2).any(-1), (parts & hidden[:, None]).flatten(-2).any(-1)
    return (drawn & ~touched).any(-1)
