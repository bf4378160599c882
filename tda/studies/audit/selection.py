"""Few documents from a pool: which, and what a young model makes of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tda import lm
from tda.recipe import Recipe
from tda.task import Examples, Task
from tda.training import train


def chosen(wish: np.ndarray, budget: int) -> np.ndarray:
    """Positions, increasing, of the ``budget`` documents with the largest ``wish`` [N]; of equal ones the first.

    ValueError for a budget below 1 or above the pool, and for a wish that is not finite.
    """
    if not 1 <= budget <= len(wish):
        raise ValueError(f"a budget of {budget} documents from a pool of {len(wish)}; give 1 to {len(wish)}")
    if not np.isfinite(wish).all():
        raise ValueError("a wish that is not finite has no place in a ranking; choose by scores of all documents")
    return np.sort(np.argsort(-wish, kind="stable")[:budget])


def halves(rng: np.random.Generator, held_out: np.ndarray, entity: np.ndarray, group: Sequence[str]):
    """Positions (development, evaluation) of a group's ``held_out`` [Q] queries, split at random, each increasing."""
    places = rng.permutation(np.flatnonzero(held_out & np.isin(entity, group)))
    return np.sort(places[: len(places) // 2]), np.sort(places[len(places) // 2 :])


def loss_after(base: Task, documents: Examples, evaluation: Examples, recipe: Recipe, seed: int) -> float:
    """Mean loss [nats] on ``evaluation`` once the first checkpoint of a base run has been trained on ``documents``."""
    young = base.run.checkpoints[0].params
    adapted = train(base.loss_fn, young, documents, recipe, seed).params
    return lm.losses(base.loss_fn, adapted, evaluation).mean()
