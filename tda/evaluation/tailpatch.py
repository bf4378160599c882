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
from torch.func import vmap

from tda.attribution.gradients import batch_of, flatten, matrix, unflatten
from tda.lm import IGNORE
from tda.task import Examples, Task, n_examples, take

LEARNING_RATE = 1e-4
WEIGHT_DECAY, EPSILON, CLIP = 0.01, 1e-8, 1.0


def first_adamw_step(params: Tensor, gradient: Tensor, lr: float = LEARNING_RATE) -> Tensor:
    """AdamW's first update from zero moments: after bias correction the moments are g and g^2.

    ``params`` [P], ``gradient`` [B, P] (clipped to norm 1 per row) -> new parameters [B, P].
    """
    norm = gradient.norm(dim=1, keepdim=True)
    gradient = gradient * (CLIP / norm.clamp(min=CLIP))
    return params * (1 - lr * WEIGHT_DECAY) - lr * gradient / (gradient.abs() + EPSILON)


def tail_patch(
    task: Task,
    train: Examples,
    queries: Examples,
    scores: Mapping[str, np.ndarray],
    ks: Sequence[int],
) -> dict[str, dict[str, np.ndarray]]:
    """``row id -> metric -> values [Q]``.

    ``scores``: row id -> [Q, N]. Ties go to the earlier document (the corpus is shuffled). Memory: the gradients of one
    query's top k documents, max(ks) x P x 4 bytes, a few times. Raises ``ValueError`` for a k above N.
    """
    if max(ks) > n_examples(train):
        raise ValueError(
            f"tailpatch_k={max(ks)} exceeds the {n_examples(train)} documents; lower evaluation.tailpatch_k."
        )
    theta = flatten({k: v.unsqueeze(0) for k, v in task.params.items()})[0]
    result: dict[str, dict[str, list[float]]] = {row: {} for row in scores}
    for q in range(n_examples(queries)):
        asked = batch_of(take(queries, slice(q, q + 1)))
        tokens = float((asked["labels"][:, 1:] != IGNORE).sum())
        base = -tokens * _losses(task, theta.unsqueeze(0), asked)  # log p of the query
        for row, matrix_of_row in scores.items():
            best = np.argsort(-matrix_of_row[q], kind="stable")[: max(ks)]
            gradients = matrix(task, take(train, best))
            sums = gradients.cumsum(0)[[k - 1 for k in ks]]
            after = -tokens * _losses(task, first_adamw_step(theta, torch.cat([gradients, sums])), asked) - base
            each, joint = after[: len(best)], after[len(best) :]
            for k, dlogp in zip(ks, joint.tolist(), strict=True):
                values = {"each": float(each[:k].mean()), "joint_abs": 100 * abs(np.expm1(dlogp)), "joint_dlogp": dlogp}
                for form, value in values.items():
                    result[row].setdefault(f"tailpatch_{form}_{k}", []).append(value)
    return {row: {metric: np.array(v) for metric, v in values.items()} for row, values in result.items()}


def _losses(task: Task, models: Tensor, asked: Examples) -> Tensor:
    """Loss of one query under each of B models [B, P], [B]."""
    with torch.no_grad():
        per_model = vmap(lambda params: task.loss_fn(params, asked, "sum"), chunk_size=8)
        return per_model(unflatten(models, task.params))
