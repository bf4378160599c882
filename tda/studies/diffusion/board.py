"""What stands beside an LDS: what chance would give, and whether the scores name the group that was left out.

For query q and groups g left out one at a time, with S_g the sum of the scores of the group's images and

    rise(q, g) = mean over seeds of (loss of q without g - loss of q under the full run of the same seed),

- Top-1: is the group with the largest S_g the one with the largest rise?
- NDCG: sum_g max(rise_g, 0) / log2(1 + place of g by S), over the same sum in the best order (Jarvelin and Kekalainen
  2002).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from sklearn.metrics import ndcg_score

from tda.bank import Bank
from tda.evaluation.lds import check_outputs, correlate_ranks, output_ranks, prediction_ranks


def shuffles(size: int, draws: int, seed: int) -> np.ndarray:
    """Random orders of subsets or groups, int [draws, size]."""
    rng = np.random.default_rng([seed, 81])
    return np.stack([rng.permutation(size) for _ in range(draws)])


def chance_lds(
    scores: Mapping[str, np.ndarray], subsets: np.ndarray, outputs: np.ndarray, orders: np.ndarray
) -> dict[str, np.ndarray]:
    """Mean LDS of every row when the losses are dealt out to the subsets anew, row id -> [draws].

    One order for all queries and rows: what queries have in common, because of which a mean over them varies more than
    independent ones would, stays. Exact for exchangeable subsets, such as random halves. Shapes as in
    :func:`tda.evaluation.lds.lds`; ``orders`` of :func:`shuffles`.
    """
    target, found = output_ranks(check_outputs(outputs)), {}
    for name, matrix in scores.items():
        ranks = prediction_ranks(matrix, subsets, outputs)
        found[name] = np.array([correlate_ranks(ranks, target[:, order]).mean() for order in orders])
    return found


def chance_probability(values: Mapping[str, float], chance: Mapping[str, np.ndarray]) -> dict[str, float]:
    """How often the largest of *all* rows by chance lies as far above chance as a row does (one-sided, familywise).

    Distances are in standard deviations of each row's own chance (Westfall and Young 1993, single step); a row that
    predicts nothing has none and gets 1.
    """
    spread = {name: float(draws.std()) for name, draws in chance.items() if draws.std() > 0}
    away = {name: (chance[name] - chance[name].mean()) / spread[name] for name in spread}
    largest = np.max([*away.values()], axis=0)
    found = dict.fromkeys(values, 1.0)
    for name in spread:
        own = (values[name] - chance[name].mean()) / spread[name]
        found[name] = float((1 + (largest >= own - 1e-9).sum()) / (1 + len(largest)))
    return found


def rises(groups: Bank) -> np.ndarray:
    """Rise of every query's loss without each group, [Q, G], of a paired bank."""
    return (groups.outputs - groups.base).mean(1).T


def group_sums(scores: np.ndarray, groups: Bank) -> np.ndarray:
    """Summed scores of every group's images, [Q, G], of scores [Q, N]."""
    return scores.astype(np.float64) @ (~groups.subsets).T.astype(np.float64)


def top_one(sums: np.ndarray, rise: np.ndarray) -> np.ndarray:
    """Top-1 of every query, [Q]; groups that tie for the largest sum share it."""
    first = np.isclose(sums, sums.max(1, keepdims=True), rtol=1e-9, atol=0)
    return first[np.arange(len(rise)), rise.argmax(1)] / first.sum(1)


def gain(sums: np.ndarray, rise: np.ndarray) -> np.ndarray:
    """NDCG of every query, [Q]; 0 where no group's absence raises the loss. Ties get the mean of their places."""
    return np.array([ndcg_score(r[None], s[None]) for r, s in zip(rise.clip(min=0), sums, strict=True)])
