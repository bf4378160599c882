"""Of chapter 3: the noise ceiling against the truth on simulated banks, beside Spearman and Brown's formula.

A simulated loss is minus a signal plus noise, with each of the two in a shape of choice. Noise is partly shared by all
queries of a model and by the queries of an entity (a Gaussian copula: shares .2 and .3 of the variance of the normal
scores), and so is the signal (.3 and .4). The expected loss of every subset is known, so the perfect predictor is
known, and with it the ceiling that a bank really has: the mean Spearman correlation of the expected losses with the
mean of the R seeds on that very bank.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pandas as pd
from scipy import special

from tda.evaluation.ceiling import ceiling
from tda.evaluation.intervals import Interval, jackknife, mean_interval, small_sample_shortfall, two_way_interval
from tda.evaluation.lds import average_ranks, correlate_ranks, output_ranks

SHAPES = {  # of a standard normal z
    "normal": lambda z: z,
    "t(3)": lambda z: special.stdtrit(3, special.ndtr(z)) / 3**0.5,
    "log-normal": lambda z: (np.exp(z) - np.e**0.5) / (np.e * (np.e - 1)) ** 0.5,
}
SCENARIOS = {
    "Gaussian": {},
    "t(3) noise": {"noise": "t(3)"},
    "skewed noise": {"noise": "log-normal"},
    "queries differ": {"uneven": 1.0},
    "t(3) noise, queries differ": {"noise": "t(3)", "uneven": 1.0},
    "noise differs between subsets": {"subset_scale": 0.7},
    "skewed signal": {"signal": "log-normal"},
    "two subsets matter": {"signal": "sparse"},
    "noise grows with the loss": {"with_loss": 0.5},
}


def simulate_losses(
    rng: np.random.Generator,
    n_subsets: int,
    n_seeds: int,
    n_entities: int = 33,
    per_entity: int = 3,
    level: float = 1.5,
    noise: str = "normal",
    signal: str = "normal",
    uneven: float = 0.0,
    subset_scale: float = 0.0,
    with_loss: float = 0.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(outputs [M, R, Q], expected losses [M, Q], clusters [Q]), Q = n_entities * per_entity.

    level         standard deviation of the noise, that of the signal being 1 (before the three below).
    noise, signal  a key of SHAPES; signal "sparse": two subsets matter to each entity, the rest is a fifteenth of that.
    uneven, subset_scale, with_loss  standard deviation of the logarithm of the noise's scale between queries and
                  between subsets, and its slope by the expected loss.
    """
    clusters = np.repeat(np.arange(n_entities), per_entity)
    size, queries = (n_subsets, n_seeds), len(clusters)
    z = 0.2**0.5 * rng.standard_normal((*size, 1)) + 0.3**0.5 * rng.standard_normal((*size, n_entities))[..., clusters]
    error = SHAPES[noise](z + 0.5**0.5 * rng.standard_normal((*size, queries)))
    z = 0.3**0.5 * rng.standard_normal((n_subsets, 1)) + 0.3**0.5 * rng.standard_normal((n_subsets, queries))
    z += 0.4**0.5 * rng.standard_normal((n_subsets, n_entities))[:, clusters]
    if signal == "sparse":
        matter = rng.permuted(np.tile(np.arange(n_subsets) < 2, (n_entities, 1)), axis=1)
        strong = matter * (1 + rng.exponential(1, matter.shape)) * n_subsets**0.5 / 2.5
        expected = strong.T[:, clusters] + 0.15 * z
    else:
        expected = SHAPES[signal](z)
    own = 0.8 * rng.standard_normal(n_entities)[clusters] + 0.6 * rng.standard_normal(queries)
    log_scale = uneven * own + subset_scale * rng.standard_normal((n_subsets, 1)) + with_loss * expected
    log_scale -= subset_scale**2 + with_loss**2
    shift = 0.5 * rng.standard_normal((n_seeds, queries))
    outputs = expected[:, None] + level * np.exp(log_scale)[:, None] * error + shift
    return outputs, expected, clusters


def realised_ceiling(outputs: np.ndarray, expected: np.ndarray) -> float:
    """What the perfect predictor gets on this bank: mean over queries of Spearman(expected, mean of the seeds)."""
    return float(correlate_ranks(average_ranks(-expected.T), output_ranks(outputs)).mean())


def by_formula(outputs: np.ndarray, clusters: Sequence | None = None, level: float = 0.95) -> Interval:
    """Spearman and Brown's sqrt(R r1 / (1 + (R - 1) r1)), r1 the mean Spearman correlation of single seeds, with the
    two-way jackknife interval of r1 transformed: the ceiling as it is usually computed.
    """
    size, seeds, _ = outputs.shape
    ranks = [average_ranks(-outputs[:, r].T) for r in range(seeds)]
    found = [jackknife({0: ranks[a]}, ranks[b])[0] for a, b in combinations(range(seeds), 2)]
    per_query, pseudo = (np.mean(kind, axis=0) for kind in zip(*found, strict=True))
    short = float(small_sample_shortfall(per_query, size).mean())
    return Interval(*(spearman_brown(r1, seeds) for r1 in two_way_interval(per_query, pseudo, clusters, level, short)))


def spearman_brown(r1: float, seeds: int) -> float:
    """sqrt(R r1 / (1 + (R - 1) r1)) for R seeds; 0 where r1 <= 0."""
    r1 = min(max(r1, 0.0), 1.0)
    return (seeds * r1 / (1 + (seeds - 1) * r1)) ** 0.5


def judge(
    scenarios: Sequence[str] = tuple(SCENARIOS),
    n_subsets: int = 64,
    n_seeds: int = 2,
    noise_level: float = 1.5,
    replicates: int = 40,
    level: float = 0.95,
    seed: int = 0,
) -> pd.DataFrame:
    """Error and coverage of both estimates of the ceiling: one row per scenario and estimate ("simulation", "formula").

    Columns: truth (mean of what banks really have), error (mean of estimate minus that of the same bank) with its
    interval error_low, error_high, rmse of the same, coverage (of the truth, at `level`), width, replicates.
    Errors: ValueError for an unknown scenario or fewer than 2 replicates.
    """
    if (unknown := set(scenarios) - set(SCENARIOS)) or replicates < 2:
        raise ValueError(
            f"scenarios {sorted(unknown)} are unknown, {replicates} replicates: give {list(SCENARIOS)}, at least 2"
        )
    rows = []
    for place, name in enumerate(scenarios):
        options = {"n_subsets": n_subsets, "n_seeds": n_seeds, "level": noise_level} | SCENARIOS[name]
        rng = np.random.default_rng([seed, n_subsets, n_seeds, place])
        banks = [simulate_losses(rng, **options) for _ in range(replicates)]
        more = [realised_ceiling(*simulate_losses(rng, **options)[:2]) for _ in range(5 * replicates)]
        realised = np.array([realised_ceiling(outputs, expected) for outputs, expected, _ in banks])
        truth = float(np.mean([*realised, *more]))
        for estimate, of in {"simulation": ceiling, "formula": by_formula}.items():
            found = [of(outputs, clusters, level) for outputs, _, clusters in banks]
            value, low, high = np.array([(b.value, b.low, b.high) for b in found]).T
            error = mean_interval(value - realised, None, level)
            inside = float(np.mean((low <= truth) & (truth <= high)))
            spread = float(np.sqrt(np.mean((value - realised) ** 2)))
            rows.append((name, estimate, truth, *error, spread, inside, (high - low).mean(), replicates))
    names = ["scenario", "estimate", "truth", "error", "error_low", "error_high", "rmse", "coverage", "width"]
    return pd.DataFrame(rows, columns=[*names, "replicates"])
