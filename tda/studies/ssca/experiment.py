"""One seed of the experiment: scenes, a base model, its rankings of regions, and models trained on from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tda.studies.ssca import augment, lima, nets, scenes
from tda.studies.ssca.regions import Grid, first, hide

GRID, CAP, Q = Grid(scenes.SIDE, 4), 0.5, 4


@dataclass(frozen=True)
class Sizes:
    """What may be small: training scenes, scenes of a test set, held-out scenes that are searched, epochs of both phases."""

    train: int = 1200
    test: int = 600
    searched: int = 150
    base: nets.Recipe = nets.BASE
    joint: nets.Recipe = nets.JOINT
    width: int = 16


def by_lima(
    model, images: Tensor, labels: Tensor, grid: Grid, weights=lima.FLIP, q: int = Q, chunk: int = 300
) -> Tensor:
    """Orders of regions [N, n] by the set function with these weights."""
    orders = []
    for x, y in zip(images.split(chunk), labels.split(chunk), strict=True):
        value = lima.set_function(nets.seen_through(model, x, grid), y, weights)
        orders.append(lima.ranking(value, len(x), grid.count, q))
    return torch.cat(orders)


def flip_sizes(model, images: Tensor, labels: Tensor, grid: Grid, order: Tensor, most: int, chunk: int = 300) -> Tensor:
    """:func:`tda.studies.ssca.lima.flip_sizes` of a model, in parts."""
    parts = zip(images.split(chunk), labels.split(chunk), order.split(chunk), strict=True)
    return torch.cat([lima.flip_sizes(nets.seen_through(model, x, grid), y, o, most) for x, y, o in parts])


@dataclass(frozen=True)
class Study:
    """Everything of one seed; each part is made when it is first asked for."""

    seed: int
    sizes: Sizes
    grid: Grid = GRID
    cap: float = CAP

    def rng(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 52, *what])

    @cached_property
    def most(self) -> int:
        return self.grid.most(self.cap)

    @cached_property
    def train(self) -> scenes.Scenes:
        return scenes.draw(self.sizes.train, self.rng(1))

    @cached_property
    def tests(self) -> dict[str, scenes.Scenes]:
        return scenes.sets(self.sizes.test, self.rng(2))

    @cached_property
    def held_out(self) -> scenes.Scenes:
        return scenes.draw(self.sizes.searched, self.rng(3))

    @cached_property
    def base(self) -> nets.Net:
        start = nets.Net(scenes.CLASSES, self.sizes.width, self.seed)
        data = {"inputs": self.train.pixels, "labels": self.train.labels}
        return nets.fitted(start, data, self.sizes.base, self.seed)

    @cached_property
    def orders(self) -> dict[str, Tensor]:
        """Rankings of the regions of every training image, by the name of the arm that hides the first of them."""
        x, y = self.train.pixels, self.train.labels
        return {
            "random erasing": augment.erasing(len(x), self.grid, self.rng(4)),
            "Grad-CAM": nets.grad_cam(self.base, x, y, self.grid),
            "factual": by_lima(self.base, x, y, self.grid, lima.PUBLISHED),
            "counterfactual": by_lima(self.base, x, y, self.grid),
        }

    def flips(self, order: Tensor) -> Tensor:
        """Regions [N] that an order has to hide until the base model says another class."""
        return flip_sizes(self.base, self.train.pixels, self.train.labels, self.grid, order, self.most)

    @cached_property
    def flip_sizes(self) -> Tensor:
        """[N], of the counterfactual search: how many regions every arm hides."""
        return self.flips(self.orders["counterfactual"])

    @cached_property
    def used(self) -> Tensor:
        """[N] bool: the images that get a copy, in every arm the same."""
        return augment.augmentable(self.flip_sizes, self.most)[0]

    def copies(self, order: Tensor, sizes: Tensor | int, fill: str = "natural") -> Tensor:
        """The training images with the first ``sizes`` regions of an order filled; the filling is the same for all arms."""
        x = self.train.pixels
        return hide(x, self.grid.pixels(first(order, sizes)), augment.filling(fill, x, self.rng(5)))

    def joint(self, altered: Tensor, used: Tensor | None = None, weight: float = 1.0, redrawn=None) -> nets.Net:
        """The base model trained on, on images and their copies."""
        used = self.used if used is None else used
        data = {"inputs": self.train.pixels, "labels": self.train.labels, "altered": altered, "used": used}
        return nets.fitted(self.base, data, self.sizes.joint, self.seed + 1000, weight, redrawn)

    def blots(self, examples: dict, seed: int, epoch: int) -> dict:
        """For ``redrawn``: other random erasing and other filling in every epoch."""
        x, rng = self.train.pixels, self.rng(6, epoch)
        hidden = self.grid.pixels(first(augment.erasing(len(x), self.grid, rng), self.flip_sizes))
        return examples | {"altered": hide(x, hidden, augment.filling("natural", x, rng))}

    def accuracies(self, model: nets.Net) -> dict[str, float]:
        """Share of right predictions on each test set."""
        right = {name: nets.predicted(model, s.pixels) == s.labels for name, s in self.tests.items()}
        return {name: float(hits.float().mean()) for name, hits in right.items()}


def judge(count: int, recipe: nets.Recipe, width: int, seed: int) -> nets.Net:
    """A classifier that has never met the confounded scenes: backgrounds at random, and in every epoch up to half of the
    regions filled with other backgrounds, so that it knows every part.
    """
    clean = scenes.draw(count, np.random.default_rng([seed, 53]), agreement=1 / scenes.CLASSES)

    def redrawn(examples: dict, seed: int, epoch: int) -> dict:
        rng = np.random.default_rng([seed, 54, epoch])
        sizes = torch.from_numpy(rng.integers(0, GRID.most(CAP) + 1, count))
        hidden = GRID.pixels(first(augment.erasing(count, GRID, rng), sizes))
        return examples | {"inputs": hide(clean.pixels, hidden, augment.filling("natural", clean.pixels, rng))}

    start = nets.Net(scenes.CLASSES, width, seed)
    data = {"inputs": clean.pixels, "labels": clean.labels}
    return nets.fitted(start, data, recipe, seed, redrawn=redrawn)
