"""Of chapter 3: the ceiling by subsets and seeds, and on simulated banks how often the intervals cover the truth.

One replicate draws a bank the way ours are made. There are N training examples with heavy-tailed true influences: a
part common to all queries, a part shared by the queries of one entity, a part of the query alone (Student t with 3 to 4
degrees of freedom). Subsets are random halves. The loss after training on subset m with seed r is minus the summed
influence, plus noise that is shared by all queries of a model, by an entity's queries, or by none, plus an offset of
each seed. A method's scores correlate with the true influence by its `quality`, which differs between entities and
queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from tda.evaluation.ceiling import ceiling, with_seeds
from tda.evaluation.intervals import Interval, clusters_of, lds_intervals
from tda.evaluation.lds import check_outputs, correlate_ranks, lds, output_ranks, prediction_ranks

EXAMPLES = 60  # training examples of a simulated corpus


def ceiling_curve(
    outputs: np.ndarray,
    n_subsets_list: Sequence[int],
    n_seeds_list: Sequence[int],
    seed: int = 0,
    draws: int = 8,
    clusters: Sequence | None = None,
) -> pd.DataFrame:
    """How the ceiling and its 95 % interval move with the number of subsets and seeds, and what more seeds would buy.

    outputs [M, R, Q]. For m <= M subsets and r <= R seeds: mean over `draws` random choices without replacement (one
    draw where nothing is left to choose). r = 1 and r > R cannot be measured here: there the ceiling of all R seeds is
    continued by `with_seeds` (`measured` is False).
    Returns one row per (m, r): n_subsets, n_seeds, measured, r1, ceiling, low, high, width, draws.
    Errors: ValueError for m outside 3..M, r < 1, and as in `ceiling`.
    """
    size, seeds, _ = check_outputs(outputs).shape
    if not (3 <= min(n_subsets_list) and max(n_subsets_list) <= size):
        raise ValueError(f"n_subsets_list holds {list(n_subsets_list)}; the bank has from 3 to {size}")
    if min(n_seeds_list) < 1:
        raise ValueError(f"n_seeds_list = {list(n_seeds_list)}; each must be at least 1")
    rng = np.random.default_rng(seed)
    rows = []
    for m in n_subsets_list:
        for r in n_seeds_list:
            measured = 2 <= r <= seeds
            used = r if measured else seeds
            repeats = 1 if m == size and used == seeds else draws
            found = []
            for _ in range(repeats):
                chosen = np.sort(rng.permutation(size)[:m])
                which = np.sort(rng.permutation(seeds)[:used])
                c = ceiling(outputs[np.ix_(chosen, which)], clusters)
                bounds = (c.value, c.low, c.high)
                found.append([c.r1, *(bounds if measured else (with_seeds(v, used, r) for v in bounds))])
            r1, value, low, high = np.mean(found, axis=0)
            rows.append((m, r, measured, r1, value, low, high, high - low, repeats))
    names = ["n_subsets", "n_seeds", "measured", "r1", "ceiling", "low", "high", "width", "draws"]
    return pd.DataFrame(rows, columns=names)


def naive_bootstrap(
    scores: np.ndarray,
    subsets: np.ndarray,
    outputs: np.ndarray,
    clusters: Sequence | None = None,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """The percentile bootstrap of the mean LDS that draws query clusters and subsets with replacement: for the lesson,
    not for tables.

    Repeated subsets are ties in both rankings, which pull a high rank correlation down a second time: the interval sits
    too low. Arguments and errors as in `lds_intervals`.
    """
    a, b = prediction_ranks(scores, subsets, check_outputs(outputs)), output_ranks(outputs)
    label, groups = clusters_of(clusters, len(a))
    size = a.shape[1]
    rng = np.random.default_rng(seed)
    # How often subset i ranks above subset j, ties one half: [Q * M, M] for predictions and outputs.
    above = [
        ((r[:, :, None] > r[:, None, :]) + 0.5 * (r[:, :, None] == r[:, None, :])).reshape(-1, size) for r in (a, b)
    ]
    means = np.empty(resamples)
    for start in range(0, resamples, 50):
        part = slice(start, min(start + 50, resamples))
        number = part.stop - start
        times = rng.multinomial(size, np.full(size, 1 / size), number).T.astype(np.float64)
        weight = rng.multinomial(groups, np.full(groups, 1 / groups), number)[:, label].T
        x, y = ((table @ times).reshape(len(a), size, number) - size / 2 for table in above)
        length = np.sqrt((times * x * x).sum(axis=1) * (times * y * y).sum(axis=1))
        rho = np.divide((times * x * y).sum(axis=1), length, out=np.zeros_like(length), where=length > 1e-9)
        means[part] = (weight * rho).sum(axis=0) / weight.sum(axis=0)
    low, high = np.quantile(means, [0.5 - level / 2, 0.5 + level / 2])
    return Interval(float(correlate_ranks(a, b).mean()), float(low), float(high), float(means.std(ddof=1)))


def simulate_bank(
    rng: np.random.Generator,
    n_subsets: int,
    n_entities: int,
    per_entity: int = 3,
    qualities: Sequence[float] = (0.75,),
    n_seeds: int = 2,
    noise: float = 1.0,
    world: int = 0,
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray, np.ndarray]:
    """One simulated bank.

    qualities  correlation of each method's scores with the true influence, in [-0.95, 0.95].
    noise      standard deviation of the training noise; 1 is about the size of the signal.
    world      fixes the influence common to all queries: the same in every replicate, as a corpus is.
    Returns    ([scores [Q, N] per quality], subsets [M, N], outputs [M, R, Q], clusters [Q]), Q = n_entities *
               per_entity.
    """
    queries = n_entities * per_entity
    clusters = np.repeat(np.arange(n_entities), per_entity)
    common = np.random.default_rng([world, 99]).standard_t(4, EXAMPLES)
    subsets = rng.permuted(np.tile(np.arange(EXAMPLES) < EXAMPLES // 2, (n_subsets, 1)), axis=1)
    truth = 0.3 * common + 0.7 * rng.standard_t(3, (n_entities, EXAMPLES))[clusters]
    truth += 0.5 * rng.standard_t(3, (queries, EXAMPLES))
    truth /= truth.std(axis=1, keepdims=True)
    error = 0.3 * rng.standard_t(3, (n_entities, EXAMPLES))[clusters] + 0.8 * rng.standard_t(3, (queries, EXAMPLES))
    spread = 0.15 * rng.standard_normal(n_entities)[clusters] + 0.1 * rng.standard_normal(queries)
    scores = []
    for quality in qualities:
        mixed = error + 0.6 * rng.standard_t(3, (queries, EXAMPLES))
        mixed /= mixed.std(axis=1, keepdims=True)
        share = np.clip(quality + spread, -0.95, 0.95)[:, None]
        scores.append(share * truth + np.sqrt(1 - share**2) * mixed)
    model = rng.standard_t(4, (n_subsets, n_seeds, 1)) / 2**0.5
    entity = rng.standard_normal((n_subsets, n_seeds, n_entities))[:, :, clusters]
    alone = rng.standard_t(4, (n_subsets, n_seeds, queries)) / 2**0.5
    signal = subsets @ truth.T / np.sqrt(EXAMPLES / 4)
    outputs = (
        -signal[:, None] + noise * (model + entity + alone) / 3**0.5 + 0.5 * rng.standard_normal((n_seeds, queries))
    )
    return scores, subsets, outputs, clusters


def simulate_coverage(
    n_subsets: Sequence[int] = (16, 64),
    n_entities: Sequence[int] = (34,),
    qualities: Sequence[float] = (0.1, 0.75, 0.95),
    methods: Sequence[str] = ("jackknife", "naive"),
    replicates: int = 100,
    resamples: int = 200,
    noises: Sequence[float] = (1.0,),
    per_entity: int = 3,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Coverage and mean width of the intervals on simulated banks.

    methods    "jackknife" (`lds_intervals`: what the tables use) and "naive" (`naive_bootstrap`).
    qualities  of the method; `difference` rows compare it with a second method of half that quality (jackknife only).
    The truth is the mean over independent large banks (600 subsets, 300 queries) of the same world.
    Returns    one row per setting, quantity ("lds" | "difference") and method.
    Errors     ValueError for an unknown method or fewer than 1 replicate.
    """
    unknown = set(methods) - {"jackknife", "naive"}
    if unknown or replicates < 1:
        raise ValueError(f"methods {sorted(unknown)}, replicates {replicates}: give jackknife or naive, and at least 1")
    rows = []
    for quality in qualities:
        for noise in noises:
            pair = (quality, quality / 2)
            truth = _truth(pair, noise, seed)
            for m in n_subsets:
                for g in n_entities:
                    rng = np.random.default_rng([seed, m, g, round(1000 * quality), round(1000 * noise)])
                    found: dict[tuple[str, str], list] = {}
                    for index in range(replicates):
                        (a, b), subsets, outputs, clusters = simulate_bank(rng, m, g, per_entity, pair, 2, noise, seed)
                        if "jackknife" in methods:
                            row = lds_intervals({"a": a, "b": b}, subsets, outputs, clusters, level, ("b",))["a"]
                            found.setdefault(("lds", "jackknife"), []).append(row.value)
                            found.setdefault(("difference", "jackknife"), []).append(row.difference["b"])
                        if "naive" in methods:
                            interval = naive_bootstrap(a, subsets, outputs, clusters, level, resamples, index)
                            found.setdefault(("lds", "naive"), []).append(interval)
                    for (quantity, method), intervals in found.items():
                        value, low, high = np.array([tuple(i) for i in intervals]).T
                        true = truth[quantity]
                        inside = float(np.mean((low <= true) & (true <= high)))
                        numbers = (true, value.mean(), inside, (high - low).mean(), replicates)
                        rows.append((m, g * per_entity, g, quality, noise, quantity, method, *numbers))
    names = ["n_subsets", "n_queries", "n_entities", "quality", "noise", "quantity", "method"]
    return pd.DataFrame(rows, columns=[*names, "truth", "mean_value", "coverage", "width", "replicates"])


def _truth(pair: Sequence[float], noise: float, seed: int, banks: int = 12) -> dict[str, float]:
    rng = np.random.default_rng([seed, 7])
    found = []
    for _ in range(banks):
        scores, subsets, outputs, _ = simulate_bank(rng, 600, 100, 3, pair, 2, noise, seed)
        found.append([lds(s, subsets, outputs).mean() for s in scores])
    first, second = np.mean(found, axis=0)
    return {"lds": float(first), "difference": float(first - second)}
