"""How well scores of a proxy fit the target: LDS that can be added and compared, mislabels, brittleness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import stats
from torch.func import functional_call, vmap

from tda.evaluation.intervals import Interval, jackknife, small_sample_shortfall, t_interval, two_way_interval
from tda.evaluation.lds import check_outputs, output_ranks, prediction_ranks
from tda.many import stack, train_many
from tda.models import initial
from tda.recipe import Recipe
from tda.task import Examples, Task
from tda.testbeds import Testbed


@dataclass(frozen=True)
class Lds:
    """An LDS, or a sum of several: per query [Q], its jackknife pseudo-values [Q, M] and the mean shortfall for few
    subsets, as in :mod:`tda.evaluation.intervals`. All are of the same queries and subsets.
    """

    per_query: np.ndarray
    pseudo: np.ndarray
    short: float

    def __add__(self, other: Lds) -> Lds:
        return Lds(self.per_query + other.per_query, self.pseudo + other.pseudo, self.short + other.short)

    def __mul__(self, factor: float) -> Lds:
        return Lds(factor * self.per_query, factor * self.pseudo, factor * self.short)

    def __sub__(self, other: Lds) -> Lds:
        return self + other * -1.0

    def interval(self, clusters: Sequence[str], level: float) -> Interval:
        return two_way_interval(self.per_query, self.pseudo, clusters, level, self.short)

    def share(self, of: Lds, clusters: Sequence[str], level: float) -> Interval:
        """self / of, by the delta method. ``ValueError`` where ``of`` is not positive: a share of nothing."""
        own, whole = self.per_query.mean(), of.per_query.mean()
        if not whole > 0:
            raise ValueError(f"a share of an LDS of {whole:.3f}: it must be positive.")
        parts = (self.per_query, of.per_query), (self.pseudo, of.pseudo)
        per_query, pseudo = (mine / whole - own * (other - whole) / whole**2 for mine, other in parts)
        return two_way_interval(per_query, pseudo, clusters, level)


def mean(parts: Sequence[Lds]) -> Lds:
    """The mean of several."""
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total * (1 / len(parts))


def lds_of(scores: Mapping, subsets: np.ndarray, outputs: np.ndarray) -> dict:
    """:class:`Lds` of many score matrices [Q, N] on one bank; under each name one matrix, or a list of those of several
    proxies, whose LDS is averaged.
    """
    outputs = check_outputs(outputs)
    target = output_ranks(outputs)
    flat = {(k, i): s for k, v in scores.items() for i, s in enumerate(v if isinstance(v, list) else [v])}
    ranks = {key: prediction_ranks(matrix, subsets, outputs) for key, matrix in flat.items()}
    found = {
        key: Lds(value, pseudo, float(small_sample_shortfall(value, len(outputs)).mean()))
        for key, (value, pseudo) in jackknife(ranks, target).items()
    }
    return {k: mean([found[k, i] for i in range(len(v) if isinstance(v, list) else 1)]) for k, v in scores.items()}


def filled(scores: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Scores [Q, N] from those of the known documents [Q, known]: all others get the query's mean."""
    whole = np.repeat(scores.mean(1, keepdims=True), len(known), 1)
    whole[:, known] = scores
    return whole


def auc(suspicion: np.ndarray, wrong: np.ndarray, level: float) -> Interval:
    """Area under the ROC curve with DeLong's interval (DeLong et al. 1988): the probability that an example with a
    wrong label is more suspicious than one with a right label, ties counting one half.
    """
    bad, good = np.asarray(suspicion)[wrong], np.asarray(suspicion)[~wrong]
    above = (bad[:, None] > good).astype(float) + 0.5 * (bad[:, None] == good)
    of_bad, of_good = above.mean(1), above.mean(0)
    variance = of_bad.var(ddof=1) / len(bad) + of_good.var(ddof=1) / len(good)
    return t_interval(float(above.mean()), float(np.sqrt(variance)), min(len(bad), len(good)) - 1, level)


def flips(bed: Testbed, task: Task, queries: Examples, without: np.ndarray, seed: int) -> np.ndarray:
    """[Q, R] bool: does the target's answer to query q change when it is trained again, by its own recipe and seed,
    without the documents ``without[q, r]`` (bool [Q, R, N], R ways to take some away)?
    """
    count, ways, n = without.shape
    masks = np.concatenate([~without.reshape(-1, n), np.ones((1, n), bool)])
    start = initial(bed, seed)[1]
    params = train_many(
        task.loss_fn, stack([start] * len(masks)), bed.train, Recipe.of(bed.settings["training"]), masks,
        [seed] * len(masks), "mask",
    )  # fmt: skip
    with torch.no_grad():
        answers = vmap(lambda one: functional_call(task.model, one, (queries["inputs"],)).argmax(-1))(params).numpy()
    own = answers[:-1].reshape(count, ways, count)[np.arange(count), :, np.arange(count)]
    return own != answers[-1][:, None]


def rate(flipped: np.ndarray, level: float) -> Interval:
    """The share [0, 1] of the queries that flipped, with Wilson's interval."""
    count, z = len(flipped), float(stats.norm.isf((1 - level) / 2))
    p, scale = float(flipped.mean()), 1 + z**2 / count
    middle, half = (p + z**2 / (2 * count)) / scale, z * np.sqrt(p * (1 - p) / count + z**2 / (4 * count**2)) / scale
    return Interval(p, min(p, middle - half), max(p, middle + half), df=float("inf"))


def most(scores: np.ndarray, k: int) -> np.ndarray:
    """[Q, N] bool: the k largest scores of every query."""
    chosen = np.zeros(scores.shape, bool)
    np.put_along_axis(chosen, np.argsort(-scores, axis=1, kind="stable")[:, :k], True, axis=1)
    return chosen


def odd_among_neighbours(scores: np.ndarray, train: Examples, k: int = 10) -> np.ndarray:
    """[N] share of an example's k most similar others that carry another label; scores [N, N] are similarities."""
    apart = scores.copy()
    np.fill_diagonal(apart, -np.inf)
    labels = np.asarray(train["labels"])
    near = np.argsort(-apart, axis=1, kind="stable")[:, :k]
    return (labels[near] != labels[:, None]).mean(1)
