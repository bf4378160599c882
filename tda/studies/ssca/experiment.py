"""One seed of the experiment: scenes, a base model, its rankings of regions, and models trained on from it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from tda.studies.ssca import augment, lima, nets, scenes
from tda.studies.ssca.nets import Net
from tda.studies.ssca.regions import Grid, first, hide

GRID, CAP, Q = Grid(scenes.SIDE, 4), 0.5, 4


@dataclass(frozen=True)
class Sizes:
    """What may be small: numbers of scenes (training, a test set, searched), how both phases train, the net's width."""

    train: int = 1200
    test: int = 600
    searched: int = 150
    base: nets.Recipe = nets.BASE
    joint: nets.Recipe = nets.JOINT
    width: int = 16


def searched(
    model: Net, s: scenes.Scenes, weights=lima.FLIP, filling: Tensor | None = None, q: int = Q, chunk: int = 300
) -> Tensor:
    """Orders of the regions of scenes, [N, n], by the set function with these weights."""
    orders = []
    for part in torch.arange(len(s)).split(chunk):
        seen = nets.seen_through(model, s.pixels[part], GRID, None if filling is None else filling[part])
        orders.append(lima.ranking(lima.set_function(seen, s.labels[part], weights), len(part), GRID.count, q))
    return torch.cat(orders)


def flips(model: Net, s: scenes.Scenes, order: Tensor, filling: Tensor | None = None) -> Tensor:
    """:func:`tda.studies.ssca.lima.flip_sizes` of scenes, [N], within the area cap."""
    seen = nets.seen_through(model, s.pixels, GRID, filling)
    return lima.flip_sizes(seen, s.labels, order, GRID.most(CAP))


@dataclass(frozen=True)
class Study:
    """Everything of one seed; each part is made when it is first asked for."""

    seed: int
    sizes: Sizes
    agreement: float = scenes.AGREEMENT

    def rng(self, *what: int) -> np.random.Generator:
        return np.random.default_rng([self.seed, 52, *what])

    @cached_property
    def train(self) -> scenes.Scenes:
        return scenes.draw(self.sizes.train, self.rng(1), self.agreement)

    @cached_property
    def tests(self) -> dict[str, scenes.Scenes]:
        return scenes.sets(self.sizes.test, self.rng(2), self.agreement)

    @cached_property
    def held_out(self) -> scenes.Scenes:
        return scenes.draw(self.sizes.searched, self.rng(3), self.agreement)

    @cached_property
    def base(self) -> Net:
        start = Net(scenes.CLASSES, self.sizes.width, self.seed)
        data = {"inputs": self.train.pixels, "labels": self.train.labels}
        return nets.fitted(start, data, self.sizes.base, self.seed)

    @cached_property
    def orders(self) -> dict[str, Tensor]:
        """Rankings of the regions of every training image, by the name of the arm that hides the first of them."""
        x, y = self.train.pixels, self.train.labels
        return {
            "random erasing": augment.erasing(len(x), GRID, self.rng(4)),
            "Grad-CAM": nets.grad_cam(self.base, x, y, GRID),
            "factual": searched(self.base, self.train, lima.PUBLISHED),
            "counterfactual": searched(self.base, self.train),
        }

    @cached_property
    def flip_sizes(self) -> Tensor:
        """[N], of the counterfactual search: how many regions every arm hides."""
        return flips(self.base, self.train, self.orders["counterfactual"])

    @cached_property
    def used(self) -> Tensor:
        """[N] bool: the images that get a copy, in every arm the same."""
        return augment.augmentable(self.flip_sizes, GRID.most(CAP))[0]

    @cached_property
    def natural(self) -> Tensor:
        """The natural filling, the same in all arms."""
        return augment.filling("natural", self.train.pixels, self.rng(5))

    def copies(self, order: Tensor, sizes: Tensor | int, fill: str = "natural") -> Tensor:
        """The training images with the first ``sizes`` regions of an order filled."""
        x = self.train.pixels
        cover = self.natural if fill == "natural" else augment.filling(fill, x, self.rng(5))
        return hide(x, GRID.pixels(first(order, sizes)), cover)

    def joint(self, altered: Tensor, used: Tensor | None = None, weight: float = 1.0, redrawn=None) -> Net:
        """The base model trained on, on images and their copies."""
        used = self.used if used is None else used
        data = {"inputs": self.train.pixels, "labels": self.train.labels, "altered": altered, "used": used}
        return nets.fitted(self.base, data, self.sizes.joint, self.seed + 1000, weight, redrawn)

    def blots(self, examples: dict, seed: int, epoch: int) -> dict:
        """For ``redrawn``: another random erasing and another natural filling in every epoch."""
        x, rng = self.train.pixels, self.rng(6, epoch)
        hidden = GRID.pixels(first(augment.erasing(len(x), GRID, rng), self.flip_sizes))
        return examples | {"altered": hide(x, hidden, augment.filling("natural", x, rng))}

    def accuracies(self, model: Net) -> dict[str, float]:
        """Share of right predictions on each test set. Also ``follows``, the share of swapped backgrounds that are
        named for the class, and ``elsewhere``, right where parts are missing and the background is of another class.
        """
        found = {name: nets.predicted(model, s.pixels) for name, s in self.tests.items()}
        right = {name: (found[name] == s.labels).float() for name, s in self.tests.items()}
        follows = found["background"] == self.tests["background"].background
        elsewhere = right["occlusion"][self.tests["occlusion"].background != self.tests["occlusion"].labels]
        more = {"follows": follows.float(), "elsewhere": elsewhere}
        return {name: float(hits.mean()) for name, hits in (right | more).items()}


def judge(count: int, recipe: nets.Recipe, width: int, seed: int) -> Net:
    """A classifier that has never met confounded scenes: backgrounds at random, and in every epoch up to half of the
    regions filled with another background, so that it learns every part.
    """
    clean = scenes.draw(count, np.random.default_rng([seed, 53]), agreement=1 / scenes.CLASSES)

    def redrawn(examples: dict, seed: int, epoch: int) -> dict:
        rng = np.random.default_rng([seed, 54, epoch])
        sizes = torch.from_numpy(rng.integers(0, GRID.most(CAP) + 1, count))
        hidden = GRID.pixels(first(augment.erasing(count, GRID, rng), sizes))
        return examples | {"inputs": hide(clean.pixels, hidden, augment.filling("natural", clean.pixels, rng))}

    data = {"inputs": clean.pixels, "labels": clean.labels}
    return nets.fitted(Net(scenes.CLASSES, width, seed), data, recipe, seed, redrawn=redrawn)
