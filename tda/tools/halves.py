"""Models of one's own: trained on random halves of the documents, apart from every bank, and kept for new queries."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tda.lm import losses
from tda.task import Examples, Params, Task
from tda.tools.cache import remembered

FIRST_SEED = 10**6  # seeds of base models and banks are smaller
SHARING = 16  # models of a regression that share a seed
STREAMS = 4  # of subsets and seeds that a method's seed has
MOST = 4096  # draws that are looked at to say how many would do
ROUNDING = float(np.finfo(np.float32).eps)  # a smaller loss is none that float32 tells from 0


def draw(n: int, count: int, seed: int, share: float = 0.5, stream: int = 0) -> np.ndarray:
    """Random subsets, bool [count, n], of round(share n) documents each. In stream 0 and at a share of one half they
    come in pairs that share no document, so that two already show every document inside and outside. In other streams
    they are independent, as regressions ask: both of a pair show the same interactions of two documents. A larger
    ``count`` adds new ones to the same.
    """
    kept = round(share * n)
    if not 0 < kept < n:
        raise ValueError(f"share={share} keeps {kept} of {n} documents; keep some, leave some.")
    masks = np.zeros((count, n), bool)
    for number, mask in enumerate(masks):
        if share == 0.5 and not stream and number % 2:
            mask[:] = ~masks[number - 1]
        else:
            mask[np.random.default_rng([seed, 91, stream, number]).permutation(n)[:kept]] = True
    return masks


def require_both_sides(masks: np.ndarray, enough: int | None = None) -> None:
    """Raise ``ValueError`` unless every document is inside of one of ``masks`` [k, N] and outside of another.
    ``enough``: how many draws would do.
    """
    if len(masks) < 2:
        raise ValueError(f"{len(masks)} half; at least 2 are needed, so that a document can be inside and outside.")
    inside = masks.sum(0)
    lone = np.flatnonzero((inside == 0) | (inside == len(masks)))
    if len(lone):
        cure = f"Take {enough} of them." if enough else "Draw more, or pairs that share no document."
        raise ValueError(
            f"{len(lone)} documents ({lone[:5].tolist()}) are in all of the {len(masks)} subsets or in none, and have "
            f"no score on either side. {cure}"
        )


def draw_covering(n: int, count: int, seed: int, share: float = 0.5) -> np.ndarray:
    """:func:`draw` behind :func:`require_both_sides`, which then says the number of draws that suffices."""
    masks, more = draw(n, count, seed, share), count
    inside = masks.sum(0)
    while ((inside == 0) | (inside == more)).any() and more < MOST:
        more += 1
        inside = inside + draw(n, more, seed, share)[-1] if share != 0.5 else draw(n, more, seed).sum(0)
    require_both_sides(masks, more if more < MOST else None)
    return masks


@remembered(8)
def trained(task: Task, masks: np.ndarray, seeds: Sequence[int], moments: int = 1) -> list[list[Params]]:
    """The parameters of one model a mask, at ``moments`` evenly spaced moments of its run (1: the end). Remembered, and
    charged to all who ask. ``ValueError`` for a task that does not say how it is trained again.
    """
    run = task.run
    if run is None or (run.retrain is None and run.retrain_many is None):
        raise ValueError(
            f"the task {task.name!r} does not say how it is trained again (run.retrain); load it from a testbed, or "
            f"give it the run of tda.training.train_recorded."
        )
    if run.retrain_many is not None:
        return list(run.retrain_many(masks, list(seeds), moments))
    if moments > 1:
        raise ValueError(
            f"the task {task.name!r} retrains to the end only (run.retrain); moments before it need run.retrain_many."
        )
    return [[run.retrain(mask, seed)] for mask, seed in zip(masks, seeds, strict=True)]


def log_losses(task: Task, models: Sequence[Params], queries: Examples) -> np.ndarray:
    """Logarithm of every query's loss under every model, [Q, models] float64: alike for sure and unsure queries."""
    found = np.stack([losses(task.loss_fn, params, queries) for params in models], 1).astype(np.float64)
    return np.log(np.maximum(found, ROUNDING))


def seeds_from(seed: int, count: int, stream: int = 0, sharing: int = 1) -> list[int]:
    """Seeds of own models: other ones for every ``seed`` and ``stream``, each for ``sharing`` models in a row, so that
    the first of many models share theirs as well, and more models leave those of the first as they are.
    """
    start = FIRST_SEED * (1 + STREAMS * seed + stream)
    return [start + number // sharing for number in range(count)]


def without_seeds(values: np.ndarray, seeds: Sequence[int]) -> np.ndarray:
    """Values [Q, models] less the mean over the models of a seed: what a seed does to all subsets alike is no effect of
    a document, and a bank, whose subsets share their seeds, does not show it either.
    """
    values, seeds = np.array(values, np.float64), np.asarray(seeds)
    for seed in np.unique(seeds):
        values[:, seeds == seed] -= values[:, seeds == seed].mean(1, keepdims=True)
    return values
