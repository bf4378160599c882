"""From the agreement of seeds to the agreement with the truth, for noise of any shape: a calibrated simulation.

A bank measures how well two halves of its seeds agree; the ceiling asks how well the mean of all seeds agrees with the
expected loss. Spearman and Brown's formula joins the two for Gaussian losses. Means of heavy-tailed or skewed noise
stay noisy longer, and a rank correlation sees a heavy-tailed signal poorly, so the formula then promises too much.
Here losses are simulated in the bank's own shape, one query a row,

    y[m, r] = s[m] + lambda exp(delta s[m] + eta z[m]) e[m, r],   s, e of Tukey's g-and-h shape,   z normal,

and for a grid of noise levels lambda both quantities are read off. The shape is matched (indirect inference), so that
simulated and measured losses agree in five means over queries:

    L-kurtosis of the difference of two seeds                      tail of the noise e
    Spearman correlation of its size with the mean of the others   delta: noise that grows with the loss
    Spearman correlation of its size with the mean of the two      skew of e (a seed that is far out is above)
    L-skewness and L-kurtosis of the mean over seeds               skew and tail of the signal s

Two seeds have no others. Both explanations of the third line are then matched, delta alone and skew alone, and mixed so
that the contrast between the upper and the lower half of the means is that of the bank (`_contrast`).
eta, a noise that differs between subsets, shows in the logarithms of the differences: they go together across queries.
Sources: Tukey, "Modern techniques in data analysis", 1977 (g-and-h); Hosking, "L-moments", 1990; Gourieroux, Monfort &
Renault, "Indirect inference", 1993. Nothing depends on a random seed of the caller.
"""

from __future__ import annotations

import numpy as np
from scipy import special
from scipy.linalg import hadamard

LEVELS = np.exp(np.linspace(np.log(40), np.log(0.08), 14))  # of the noise, in L-scales of the signal
ROWS = 256  # simulated queries
STEPS = 8  # of the matching
NAMES = ("noise_tail", "with_loss", "noise_skew", "signal_skew", "signal_tail", "subset_scale")
BY_STATISTIC = np.array([0, 1, 2, 3, 4])  # the statistic that moves each part of the shape
GROWTH_BY_SKEW = np.array([0, 2, 5, 3, 4])  # the skew of the noise stays 0, and its growth accounts for all
LEAST_APART = 0.02  # contrasts of the two explanations that are closer than this tell nothing
GAIN = np.array([2.0, 1.0, 1.0, 1.5, 2.0])  # about the inverse slopes of the five statistics at a Gaussian shape
LOWEST = np.array([-0.2, -0.8, -1.2, -1.0, -0.2])
HIGHEST = np.array([0.6, 0.8, 1.2, 1.0, 0.5])  # log-normal is a skew of 1, t(3) a tail of 0.2
NORMAL = special.ndtri((np.arange(200) + 0.5) / 200)
FEWEST = 8  # subsets; with fewer a shape cannot be told from chance and is taken as Gaussian


def halves(seeds: int) -> list[tuple[list[int], list[int]]]:
    """Ways to part the seeds in two halves as equal as can be, each seed as often as any other in either: at most R."""
    first = [{(start + i) % seeds for i in range(seeds // 2)} for start in range(seeds if seeds % 2 else seeds // 2)]
    return [(sorted(part), sorted(set(range(seeds)) - part)) for part in first]


def _pairs(seeds: int) -> list[tuple[int, int]]:
    """Neighbours in a circle: each seed in two pairs."""
    return [(0, 1)] if seeds == 2 else [(i, (i + 1) % seeds) for i in range(seeds)]


def relation(outputs: np.ndarray, spread: tuple[float, float]) -> tuple[np.ndarray, np.ndarray, dict[str, float]]:
    """(agreement of half the seeds with the other half [K], agreement of all seeds with the truth [K], the shape).

    outputs [M, R, Q]; spread: mean and variance of the queries' agreement. Both are expected Spearman correlations over
    M subsets, increasing, from (0, 0) to (1, 1).
    """
    losses = np.moveaxis(outputs - outputs.mean(axis=0), 2, 0)
    world = _World(losses.shape[1], losses.shape[2])
    differences = [losses[..., a] - losses[..., b] for a, b in _pairs(losses.shape[2])]
    vary = (np.ptp(losses.mean(axis=2), axis=1) > 0) & (np.min([np.ptp(d, axis=1) for d in differences], axis=0) > 0)
    if losses.shape[1] < FEWEST or vary.sum() < 2:
        return *world.relation(np.zeros(6)), dict.fromkeys(NAMES, 0.0)
    losses = losses[vary]
    if losses.shape[2] > 2:
        shape, _ = _matched(world, losses, spread, BY_STATISTIC)
        return *world.relation(shape), dict(zip(NAMES, shape.tolist(), strict=True))
    skewed, as_skewed = _matched(world, losses, spread, BY_STATISTIC)
    grown, as_grown = _matched(world, losses, spread, GROWTH_BY_SKEW)
    apart = as_skewed - as_grown
    weight = float(np.clip((_contrast(losses) - as_grown) / apart, 0, 1)) if abs(apart) > LEAST_APART else 0.5
    (x, first), (x_grown, second) = world.relation(skewed), world.relation(grown)
    shape = weight * skewed + (1 - weight) * grown
    with_truth = weight * first + (1 - weight) * np.interp(x, x_grown, second)
    return x, with_truth, dict(zip(NAMES, shape.tolist(), strict=True))


def _matched(
    world: _World, losses: np.ndarray, spread: tuple[float, float], by: np.ndarray
) -> tuple[np.ndarray, float]:
    """The shape [6] whose simulated losses have the statistics of these [Q, M, R], and the contrast that they have.

    by [5]: the statistic that moves each of the first five parts of the shape; -1 leaves it 0.
    """
    shape = np.zeros(6)
    shape[5] = _spread_of_scale(losses)
    measured = _statistics(losses)
    wanted = np.quantile(logit_normal(*spread), world.place)
    for step in range(STEPS):
        if step % 2 == 0:
            halves_agree, _ = world.curve(shape, LEVELS[::2])
        level = np.exp(np.interp(wanted, halves_agree, np.log(LEVELS[::2])))
        signal, noise = world.draw(shape)
        found = signal[..., None] + level[:, None, None] * noise
        gap = np.append(measured - _statistics(found), 0.0)
        shape[:5] = np.clip(shape[:5] + GAIN * gap[by], LOWEST, HIGHEST)
    return shape, _contrast(found) if losses.shape[2] == 2 else 0.0


def logit_normal(mean: float, variance: float) -> np.ndarray:
    """200 quantiles of a logit-normal distribution with this mean in (0, 1) and variance: how the queries' agreement is
    taken to be spread. The variance is at most 0.8 mean (1 - mean).
    """
    variance = min(variance, 0.8 * mean * (1 - mean))
    if variance < 1e-6:
        return np.full(len(NORMAL), mean)
    centre, width = special.logit(mean), np.sqrt(variance) / (mean * (1 - mean))
    for _ in range(40):  # Newton's method in two unknowns, with short steps
        q = special.expit(centre + width * NORMAL)
        by_centre, by_width = q * (1 - q), q * (1 - q) * NORMAL
        slopes = [[d.mean(), 2 * ((q - q.mean()) * d).mean()] for d in (by_centre, by_width)]
        step = np.linalg.solve(np.transpose(slopes), [q.mean() - mean, q.var() - variance]).clip(-0.7, 0.7)
        centre, width = centre - step[0], max(width - step[1], 1e-3)
    return q


class _World:
    """Simulated losses of ROWS queries with M subsets and R seeds: the same draws for every shape and level."""

    def __init__(self, subsets: int, seeds: int):
        # Signs from the columns of a Hadamard matrix: over a block of rows all products of signal and noise, and of
        # the noise of two seeds, cancel.
        order = max(4, 1 << seeds.bit_length())
        signs = hadamard(order)[:, : seeds + 1]
        rng = np.random.default_rng([subsets, seeds])
        blocks = max(1, ROWS // order)
        z = rng.standard_normal((blocks, 1, subsets, seeds + 1)) * signs[None, :, None, :]
        z = z.reshape(blocks * order, subsets, seeds + 1)
        self.signal, self.noise = z[..., 0], z[..., 1:]
        self.scale = rng.standard_normal((blocks * order, subsets, 1))
        self.place = rng.permutation((np.arange(len(z)) + 0.5) / len(z))  # quantile of each row's agreement
        self.parts = halves(seeds)

    def draw(self, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Signal [ROWS, M] and noise [ROWS, M, R], each of unit L-scale before the scale of the subset."""
        tail, with_loss, skew, signal_skew, signal_tail, subset_scale = shape
        signal = _unit_scale(_tukey(self.signal, signal_skew, signal_tail))
        scale = np.exp(np.clip(with_loss * signal[..., None], -2, 2) + subset_scale * self.scale)
        scale /= np.sqrt((scale**2).mean())
        return signal, _unit_scale(_tukey(self.noise, skew, tail)) * scale

    def curve(self, shape: np.ndarray, levels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Agreement of halves [K] and with the truth [K] for each level of noise."""
        signal, noise = self.draw(shape)
        truth, agree = _ranks(signal), []
        for level in levels:
            losses = signal[..., None] + level * noise
            parts = [[_ranks(losses[..., part].mean(axis=2)) for part in pair] for pair in self.parts]
            agree.append(
                (np.mean([_spearman(a, b) for a, b in parts]), _spearman(truth, _ranks(losses.mean(axis=2))).mean())
            )
        return tuple(np.maximum.accumulate(np.maximum(agree, 0.0)).T)

    def relation(self, shape: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The curve at all levels with its ends, (0, 0) and (1, 1)."""
        x, y = self.curve(shape, LEVELS)
        return np.concatenate([[0.0], x, [1.0]]), np.concatenate([[0.0], np.where(x > 0, y, 0.0), [1.0]])


def _tukey(z: np.ndarray, skew: float, tail: float) -> np.ndarray:
    bent = np.expm1(skew * z) / skew if abs(skew) > 1e-4 else z
    return bent * np.exp(tail * z * z / 2)


def _unit_scale(x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / _l_moments(x.reshape(1, -1))[1, 0]


def _statistics(losses: np.ndarray) -> np.ndarray:
    """What is matched: means over queries of losses [Q, M, R]."""
    seeds = losses.shape[2]
    total = losses.sum(axis=2)
    tail, growth, skew = [], [], []
    for a, b in _pairs(seeds):
        difference, both = losses[..., a] - losses[..., b], losses[..., a] + losses[..., b]
        moments = _l_moments(difference)
        tail.append((moments[3] / moments[1]).mean())
        size = _ranks(np.abs(difference - np.median(difference, axis=1, keepdims=True)))
        growth.append(_spearman(size, _ranks(total - both)).mean() if seeds > 2 else 0.0)
        skew.append(_spearman(size, _ranks(both)).mean())
    moments = _l_moments(total)
    return np.array([np.mean(tail), np.mean(growth), np.mean(skew), *(moments[2:] / moments[1]).mean(axis=1)])


def _contrast(losses: np.ndarray) -> float:
    """Of two seeds: how much more the size of their difference goes with their mean above its median than below.

    A seed far out by skewed noise raises the mean and the difference together, and is in the upper half.
    """
    half = losses.shape[1] // 2
    difference = losses[..., 0] - losses[..., 1]
    size = np.abs(difference - np.median(difference, axis=1, keepdims=True))
    size = np.take_along_axis(size, np.argsort(losses.sum(axis=2), axis=1), axis=1)
    lower, upper = (_spearman(_ranks(part), np.arange(half)).mean() for part in (size[:, :half], size[:, -half:]))
    return float(upper - lower)


def _spread_of_scale(losses: np.ndarray) -> float:
    """eta: mean covariance of log |difference of two seeds| between queries, less what correlated noise brings.

    For two normal variables with correlation rho, cov(log |x|, log |y|) = arcsin(rho)^2 / 2.
    """
    queries, size, seeds = losses.shape
    found = []
    for a, b in _pairs(seeds):
        difference = losses[..., a] - losses[..., b]
        difference = difference - np.median(difference, axis=1, keepdims=True)
        length = np.abs(difference)
        middle = np.maximum(np.median(length, axis=1, keepdims=True), np.finfo(float).tiny)
        log = np.log(np.clip(length / middle, 0.01, 100))
        log -= log.mean(axis=1, keepdims=True)
        ranks = _ranks(difference) - (size - 1) / 2
        rho = 2 * np.sin(np.pi / 6 * (ranks @ ranks.T) / (size * (size**2 - 1) / 12)).clip(-0.5, 0.5)
        excess = log @ log.T / (size - 1) - np.arcsin(rho) ** 2 / 2
        found.append((excess.sum() - np.trace(excess)) / (queries * (queries - 1)) + 0.5 / size)
    return float(np.sqrt(np.clip(np.mean(found), 0.0, 1.0)))


def _l_moments(x: np.ndarray) -> np.ndarray:
    """The first four sample L-moments of each row, [4, Q] (Hosking 1990)."""
    size = x.shape[1]
    place = np.arange(size)
    one = place / (size - 1)
    two = one * (place - 1) / (size - 2)
    three = two * (place - 2) / (size - 3)
    weights = [np.ones(size), 2 * one - 1, 6 * two - 6 * one + 1, 20 * three - 30 * two + 12 * one - 1]
    return np.array(weights) / size @ np.sort(x, axis=1).T


def _ranks(x: np.ndarray) -> np.ndarray:
    """Ranks from 0 along the last axis; simulated numbers have no ties."""
    ranks = np.empty(x.shape)
    np.put_along_axis(ranks, np.argsort(x, axis=-1), np.broadcast_to(np.arange(float(x.shape[-1])), x.shape), axis=-1)
    return ranks


def _spearman(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    size = a.shape[-1]
    return ((a * b).sum(axis=-1) - size * ((size - 1) / 2) ** 2) / (size * (size**2 - 1) / 12)
