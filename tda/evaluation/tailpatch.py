"""Tail patch: train one more step on the proponents and see what it does to the query. Three published forms.

All start from the trained model, take one AdamW step from fresh optimiser state (so nearly the sign of the gradient),
and compare the probability p of the query's target tokens before and after:

- ``tailpatch_each_k`` (TrackStar): one step on each of the top k alone; mean gain in log p over the k;
- ``tailpatch_joint_abs_k`` (the BGO work): one step on the summed gradient of the top k, ``|p' - p| / p``, in percent;
- ``tailpatch_joint_dlogp_k``: the same step, ``log p' - log p``, which keeps the sign.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from tda.output_loss import IGNORE
from tda.task import Examples, Task, n_examples, take
from tda.tools.gradients import batch_of, flatten, matrix, unflatten

LEARNING_RATE = 1e-4
WEIGHT_DECAY, EPSILON, CLIP = 0.01, 1e-8, 1.0


def first_adamw_step(params: Tensor, gradient: Tensor, lr: float = LEARNING_RATE) -> Tensor:
    """AdamW's first update from zero moments: after bias correction the moments are g and g^2.

    ``params`` [P], ``gradient`` [B, P] (clipped to norm 1 per row) -> new parameters [B, P].
    """
    norm = gradient.norm(dim=1, keepdim=True)
    gradient = gradient * (CLIP / norm.clamp(min=CLIP))
    gradient.div_(gradient.abs().add_(EPSILON))  # in place: five passes over memory are what this costs
    return gradient.mul_(-lr).add_(params, alpha=1 - lr * WEIGHT_DECAY)


def tail_patch(
    task: Task, train: Examples, queries: Examples, scores: Mapping[str, np.ndarray], ks: Sequence[int]
) -> dict[str, dict[str, np.ndarray]]:
    """``row id -> metric -> values [Q]``.

    ``scores``: row id -> [Q, N]. Ties go to the earlier document (the corpus is shuffled). Memory: the gradients of the
    top documents that any row has for one query, at most rows x max(ks) x P x 4 bytes. Raises ``ValueError`` for a k
    above N, and for scores that are not finite.
    """
    if max(ks) > n_examples(train):
        raise ValueError(
            f"tailpatch_k={max(ks)} exceeds the {n_examples(train)} documents; lower evaluation.tailpatch_k."
        )
    unscored = [row for row, of_row in scores.items() if not np.isfinite(of_row).all()]
    if unscored:
        raise ValueError(f"tail patch: rows {unscored} have no scores for some of these queries; score them first.")
    theta = flatten({k: v.unsqueeze(0) for k, v in task.params.items()})[0]
    result: dict[str, dict[str, list[float]]] = {row: {} for row in scores}
    for q in range(n_examples(queries)):
        asked = batch_of(take(queries, slice(q, q + 1)))
        tokens = float((asked["labels"][:, 1:] != IGNORE).sum())
        base = -tokens * _loss(task, theta, asked)  # log p of the query
        best = {row: np.argsort(-of_row[q], kind="stable")[: max(ks)] for row, of_row in scores.items()}
        documents = np.unique(np.concatenate(list(best.values())))
        gradients = matrix(task, take(train, documents))
        alone = dict(zip(documents, (_gain(task, theta, g, asked, tokens, base) for g in gradients), strict=True))
        for row, top in best.items():
            each = np.array([alone[i] for i in top])
            sums = gradients[np.searchsorted(documents, top)].cumsum(0)
            joint = np.array([_gain(task, theta, sums[k - 1], asked, tokens, base) for k in ks])
            for k, dlogp in zip(ks, joint.tolist(), strict=True):
                values = {"each": float(each[:k].mean()), "joint_abs": 100 * abs(np.expm1(dlogp)), "joint_dlogp": dlogp}
                for form, value in values.items():
                    result[row].setdefault(f"tailpatch_{form}_{k}", []).append(value)
    return {row: {metric: np.array(v) for metric, v in values.items()} for row, values in result.items()}


def _gain(task: Task, theta: Tensor, gradient: Tensor, asked: Examples, tokens: float, base: float) -> float:
    """log p of the query after one step, minus before. One model at a time: it stays in the cache."""
    return -tokens * _loss(task, first_adamw_step(theta, gradient.unsqueeze(0))[0], asked) - base


def _loss(task: Task, theta: Tensor, asked: Examples) -> float:
    with torch.no_grad():
        params = {k: v[0] for k, v in unflatten(theta.unsqueeze(0), task.params).items()}
        return float(task.loss_fn(params, asked, "sum"))
