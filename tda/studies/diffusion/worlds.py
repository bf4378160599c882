"""Base models of sprites and what they are asked, in worlds that differ in which combinations are never trained on.

The testbed leaves one diagonal of the grid of colours and shapes out: five combinations, too few to tell methods apart.
Five shifted diagonals are the whole grid, so that in five worlds every combination is unseen once.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from tda import models
from tda.studies.diffusion.concepts import MOST, having, questions
from tda.studies.diffusion.counterfactual import retrained, task_of
from tda.task import Examples, Task, tensors
from tda.testbeds import images, pictures


@dataclass(frozen=True)
class World:
    """Models ``tasks`` of the images ``train``, and queries ``asked`` with the list ``set`` of :func:`questions`."""

    tasks: tuple[Task, ...]
    train: Examples
    asked: Examples

    @functools.cached_property
    def of_set(self) -> dict[str, np.ndarray]:
        """Which queries are of a set, [Q] bool by its name."""
        sets = np.array(self.asked["set"])
        return {name: sets == name for name in dict.fromkeys(self.asked["set"])}

    @functools.cached_property
    def relevant(self) -> np.ndarray:
        """[2, Q, N] bool: for both tokens, images with the query's value."""
        return having(self.train, self.asked)


def of_testbed(testbed) -> World:
    """The testbed's own world: a base model of each of its seeds."""
    tasks = tuple(models.load_task(testbed, seed) for seed in models.seeds_of(testbed))
    return World(tasks, testbed.train, questions(testbed))


def shifted(testbed, shift: int) -> World:
    """A world whose unseen combinations are those of the diagonal ``shift`` places on (0: the testbed's own), with new
    images, as many of a combination, nothing planted, and one model by the testbed's recipe. Queries: ``tune`` of
    trained combinations and ``outside`` of the unseen ones, at most :data:`~tda.studies.diffusion.concepts.MOST` each.
    """
    cells = [(c, s, (j - i) % len(pictures.SHAPES) == shift)
             for i, c in enumerate(pictures.COLOURS) for j, s in enumerate(pictures.SHAPES)]  # fmt: skip
    trained, unseen = ([cell[:2] for cell in cells if cell[2] == is_unseen] for is_unseen in (False, True))
    corpus, seed = testbed.settings["corpus"], testbed.config["seed"] + shift
    rng = np.random.default_rng([seed, 85])
    rows = [pictures.sprite(*cell, rng) for cell in trained for _ in range(corpus["each"])]
    counts = {"tune": (trained, min(corpus["validation"], MOST))}
    counts["outside"] = unseen, min(corpus["unseen"] * len(unseen), MOST)
    asked = [(pictures.sprite(*of[i % len(of)], rng), name) for name, (of, n) in counts.items() for i in range(n)]
    train = _encoded(rows)
    model = testbed.modality.new_model(testbed, seed)
    epochs = testbed.settings["training"]["epochs"]
    params = retrained(testbed, model, tensors(train), np.array([], int), seed, epochs)
    queries = _encoded([row for row, _ in asked]) | {"set": [name for _, name in asked]}
    return World((task_of(testbed, model, params, f"shifted by {shift}"),), train, queries)


def _encoded(rows: list[dict]) -> Examples:
    return images.encode({name: [row[name] for row in rows] for name in ("pixels", "condition", "entity")})
