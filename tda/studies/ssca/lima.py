"""LIMA: regions ranked by a set function and a greedy search from both ends, and the search for a flip.

With S a set of the n regions of an image, x_S the image with all else removed, x without S the rest, C classes,

    F(S) = l1 p_y(x_S) + l2 (1 - p_y(x without S)) + l3 (1 - H(p(. | x_S)) / log C)
           consistency   collaboration               confidence

Weights, search and removal by black are those of LIMA's released code for classifiers (arXiv 2504.00470), written anew.
A search for a flip raises l2 and cuts the order where the prediction changes; by how much SS-CA raises it is unknown to
us. A model is seen only as ``probabilities(visible)``: regions [B, M, n] bool that stay -> [B, M, C].
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import torch
import torch.nn.functional as F
from torch import Tensor

PUBLISHED = (20.0, 5.0, 0.01)  # consistency, collaboration, confidence
FLIP = (0.0, 1.0, 0.0)  # our reading of "removal alters the prediction"
Probabilities = Callable[[Tensor], Tensor]


def set_function(probabilities: Probabilities, labels: Tensor, weights: tuple[float, float, float]):
    """``F(S) [B, M]`` of sets [B, M, n] bool, for ``labels`` [B]; terms of weight 0 are not computed."""
    consistency, collaboration, confidence = weights

    def of_label(p: Tensor) -> Tensor:
        return p.gather(-1, labels[:, None, None].expand(*p.shape[:2], 1)).squeeze(-1)

    def value(sets: Tensor) -> Tensor:
        total = torch.zeros(sets.shape[:2])
        if consistency or confidence:
            alone = probabilities(sets)
            entropy = torch.special.entr(alone).sum(-1) / math.log(alone.shape[-1])
            total = consistency * of_label(alone) + confidence * (1 - entropy)
        return total + collaboration * (1 - of_label(probabilities(~sets))) if collaboration else total

    return value


def ranking(value: Callable[[Tensor], Tensor], images: int, regions: int, q: int = 0) -> Tensor:
    """Regions in the order of their importance, [images, regions], by greedy search.

    Each round puts the best region (largest F with those in front) in front. As long as more than ``q`` > 0 are left,
    the one of the q lowest of that round with the smallest F together with those at the back goes to the back: about
    (n - q) / 2 + q rounds in place of n. ``q`` = 0: from the front only. Ties go to the lower number.
    """
    if not 0 <= q <= regions:
        raise ValueError(f"q={q} with {regions} regions; give 0 (from the front only) to {regions}.")
    order = torch.zeros(images, regions, dtype=torch.int64)
    front, back = torch.zeros(2, images, regions, dtype=torch.bool)
    low, high, rows = 0, regions, torch.arange(images)
    while low < high:
        left = (~(front | back)).nonzero()[:, 1].view(images, -1)
        values = value(front[:, None] | F.one_hot(left, regions).bool())
        best = values.argmax(1)
        order[:, low] = left[rows, best]
        front[rows, order[:, low]] = True
        low += 1
        if q and high - low > q:
            lowest = values.scatter(1, best[:, None], torch.inf).argsort(dim=1, stable=True)[:, :q]
            left = left.gather(1, lowest)
            high -= 1
            worst = value(back[:, None] | F.one_hot(left, regions).bool()).argmin(1)
            order[:, high] = left[rows, worst]
            back[rows, order[:, high]] = True
    return order


def flip_sizes(probabilities: Probabilities, labels: Tensor, order: Tensor, most: int) -> Tensor:
    """How many regions of an ``order`` [B, n] are removed when the prediction first differs from the label, [B].

    0: it differs already; ``most`` + 1: it does not within ``most`` regions.
    """
    chosen = F.one_hot(order, order.shape[1]).cumsum(1).bool()[:, :most]
    removed = torch.cat([torch.zeros_like(chosen[:, :1]), chosen], 1)
    other = probabilities(~removed).argmax(-1) != labels[:, None]
    return torch.where(other.any(1), other.int().argmax(1), most + 1)


def smallest_flips(probabilities: Probabilities, labels: Tensor, regions: int, most: int) -> Tensor:
    """:func:`flip_sizes` of the best of all orders, [B], by trying every set of up to ``most`` regions."""
    sizes = torch.full((len(labels),), most + 1)
    for size in range(most, -1, -1):
        sets = torch.zeros(math.comb(regions, size), regions, dtype=torch.bool)
        for i, members in enumerate(combinations(range(regions), size)):
            sets[i, list(members)] = True
        other = probabilities(~sets.expand(len(labels), -1, -1)).argmax(-1) != labels[:, None]
        sizes[other.any(1)] = size
    return sizes
