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

from tda.attribution.gradients import CHUNK, batch_of, flatten, matrix, unflatten
from tda.task import Examples, Task, chunks, n_examples, take

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
    chunk: int = CHUNK,
) -> dict[str, dict[str, np.ndarray]]:
    """``row id -> metric -> values [Q]`` for all rows at once, sharing the work on documents that several rows name.

    ``scores``: row id -> [Q, N]. Ties go to the earlier document (the corpus is shuffled). Memory: the gradients of the
    documents named by any row, U x P x 4 bytes. Raises ``ValueError`` for a k above N.
    """
    if max(ks) > n_examples(train):
        raise ValueError(f"tailpatch_k={max(ks)} exceeds the {n_examples(train)} documents; lower evaluation.tailpatch_k.")
    best = {row: np.argsort(-s, axis=1, kind="stable")[:, : max(ks)] for row, s in scores.items()}
    named = np.unique(np.concatenate([b.ravel() for b in best.values()]))
    place = {int(document): i for i, document in enumerate(named)}
    gradients = matrix(task, take(train, named), chunk)
    theta = flatten({k: v.unsqueeze(0) for k, v in task.params.items()})[0]
    asked = batch_of(queries)
    tokens = (asked["labels"][:, 1:] != -100).sum(1).float()
    base = -_losses(task, theta.unsqueeze(0), asked)[0] * tokens  # log p of every query

    each = torch.cat(
        [-_losses(task, first_adamw_step(theta, gradients[c]), asked) * tokens - base for c in chunks(len(named), 8)]
    )
    result: dict[str, dict[str, np.ndarray]] = {}
    for row, top in best.items():
        spots = torch.tensor([[place[int(d)] for d in line] for line in top])
        values = result.setdefault(row, {})
        for k in ks:
            chosen = spots[:, :k]
            gain = each[chosen, torch.arange(len(chosen)).unsqueeze(1)]
            values[f"tailpatch_each_{k}"] = gain.mean(1).numpy()
            change = []
            for c in chunks(len(chosen), 8):
                moved = first_adamw_step(theta, gradients[chosen[c]].sum(1))
                change.append(-_own_losses(task, moved, take(asked, c)) * tokens[c] - base[c])
            dlogp = torch.cat(change)
            values[f"tailpatch_joint_abs_{k}"] = (100 * torch.expm1(dlogp).abs()).numpy()
            values[f"tailpatch_joint_dlogp_{k}"] = dlogp.numpy()
    return result


def _losses(task: Task, models: Tensor, asked: Examples) -> Tensor:
    """Loss of every query under every model, [B, Q]."""
    with torch.no_grad():
        per_model = vmap(lambda params: task.loss_fn(params, asked, "example"))
        return per_model(unflatten(models, task.params))


def _own_losses(task: Task, models: Tensor, asked: Examples) -> Tensor:
    """Loss of query b under model b, [B]."""

    def one(params, example):
        return task.loss_fn(params, {k: v.unsqueeze(0) for k, v in example.items()}, "sum")

    with torch.no_grad():
        return vmap(one)(unflatten(models, task.params), asked)
