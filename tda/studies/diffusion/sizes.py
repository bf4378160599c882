"""What one image does, by the number of images that there are: banks of parts of a corpus.

A part keeps a share of every condition, smaller ones inside larger ones, and its models are trained on random halves of
it for as many *epochs* as ever: an image is met as often in a small corpus as in a large one. Halves move a query's
loss by a sum of effects, var = sum_i s_i^2 / 4, with s_i counted from the mean of the image's condition, of which every
half keeps half. Two seeds of a half agree about it up to noise of their own, so that their covariance over halves is
this variance, and the root mean square effect of one image is

    s = 2 sqrt(mean over queries of cov(seed 1, seed 2) / N).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tda.designs import bank_seeds
from tda.evaluation.intervals import Interval, t_interval
from tda.retrain import retrain_all
from tda.testbeds import Testbed

LEAST = 0.01  # of the variance over halves that two seeds share: below, no effect can be seen


@dataclass(frozen=True)
class Part:
    """N images ``mask`` [all images] bool, halves of them ``subsets`` [M, all images], ``outputs`` [M, R, Q] losses."""

    mask: np.ndarray
    subsets: np.ndarray
    outputs: np.ndarray

    @property
    def size(self) -> int:
        return int(self.mask.sum())


def part_masks(strata: list[str], shares: list[float], seed: int) -> list[np.ndarray]:
    """A mask [N] for every share, the same images of a stratum first in all of them, so that they are nested."""
    place, size = _places(strata, np.ones(len(strata), bool), np.random.default_rng([seed, 82]))
    return [place < np.round(share * size) for share in shares]


def halves(strata: list[str], mask: np.ndarray, count: int, seed: int) -> np.ndarray:
    """``count`` random halves of every stratum of ``mask``, bool [count, N]."""
    rng = np.random.default_rng([seed, 83, int(mask.sum())])
    drawn = (_places(strata, mask, rng) for _ in range(count))
    return np.stack([mask & (place < np.round(size / 2)) for place, size in drawn])


def _places(strata: list[str], mask: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Random place of every image among those of its stratum in ``mask``, and how many these are, [N] each."""
    place, size, names = np.full(len(strata), len(strata)), np.zeros(len(strata)), np.array(strata)
    for name in dict.fromkeys(strata):
        members = np.flatnonzero((names == name) & mask)
        place[members], size[members] = rng.permutation(len(members)), len(members)
    return place, size


def retrained_part(testbed: Testbed, mask: np.ndarray, count: int, seeds: int, say: Callable[[str], None]) -> Part:
    """Retrain ``count`` halves of a part with ``seeds`` seeds each; models are kept as those of a bank are."""
    subsets = halves(testbed.modality.strata(testbed), mask, count, testbed.config["seed"])
    wanted = [(half, seed) for half in subsets for seed in bank_seeds(testbed, seeds)]
    done = retrain_all(testbed, wanted, "filter", f"N = {mask.sum()}", say)
    return Part(mask, subsets, np.stack([d.outputs[0] for d in done]).reshape(count, seeds, -1))


def effect(part: Part) -> float:
    """s of a part, in units of the loss; where the seeds share less than :data:`LEAST` of the variance, as if that."""
    return float(np.exp(_log_effect(part.outputs, part.size)))


def _log_effect(outputs: np.ndarray, size: int) -> float:
    away = outputs.astype(np.float64) - outputs.mean(0, dtype=np.float64)
    seeds = away.shape[1]
    shared = (away.sum(1) ** 2 - (away**2).sum(1)).sum(0) / (seeds * (seeds - 1))
    shared = max(shared.mean(), LEAST * (away**2).mean(1).sum(0).mean()) / (len(away) - 1)
    return 0.5 * float(np.log(4 * shared / size))


def slope(parts: list[Part], level: float) -> Interval:
    """Slope of log s by log N (least squares), with a jackknife interval: halves of every part in turn, and queries of
    all parts together, each delete-one; the two variances are added.
    """
    at = np.log([part.size for part in parts])
    weights = (at - at.mean()) / ((at - at.mean()) ** 2).sum()
    banks = [part.outputs for part in parts]
    logs = np.array([_log_effect(b, part.size) for b, part in zip(banks, parts, strict=True)])
    variance = []
    for w, b, part in zip(weights, banks, parts, strict=True):
        variance.append(_jackknife(w * _log_effect(np.delete(b, m, 0), part.size) for m in range(len(b))))
    queries = range(banks[0].shape[2])
    without = ([_log_effect(np.delete(b, q, 2), p.size) for b, p in zip(banks, parts, strict=True)] for q in queries)
    variance.append(_jackknife(weights @ found for found in without))
    counts = [len(b) - 1 for b in banks] + [len(queries) - 1]
    df = sum(variance) ** 2 / sum(v**2 / count for v, count in zip(variance, counts, strict=True))
    return t_interval(float(weights @ logs), float(np.sqrt(sum(variance))), float(df), level)


def _jackknife(values) -> float:
    found = np.array([*values])
    return float((len(found) - 1) / len(found) * ((found - found.mean()) ** 2).sum())
