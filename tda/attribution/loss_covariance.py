"""Covariance of losses over perturbed models: attribution that reads losses and no gradient of a query.

Perturb the model k times, each time by a short fine-tuning on a random part of the documents, and see whose losses move
together (after Daunce, arXiv 2505.23223):

    score(q, i) = cov_k ( l_q(theta_k), l_i(theta_k) )

Training on i lowers l_i. If it lowers l_q as well, the two go together over the models: positive. For models at the
minimum of a randomly reweighted loss, to first order ``cov = g_q^T H^-1 F H^-1 g_i / N`` with F the covariance of the
gradients, which is influence where F is near H. A short fine-tuning does not reach the minimum, so ours is another
weighting of the same directions. Known to us of Daunce: fine-tuned perturbed models, and the covariance of losses; the
random halves, Adam and all sizes are ours.
"""

from __future__ import annotations

import numpy as np
import torch

from tda.attribution.registry import method
from tda.lm import losses
from tda.task import Examples, Params, Task, n_examples, take
from tda.tools.cache import remembered
from tda.tools.gradients import batch_of
from tda.tools.options import Count, Flag, Positive, Share, Whole, whole

CHUNK = 128  # examples whose losses are read together


@method("loss_covariance", family="simulation", paper="Daunce", needs=("params",), signed=True)
def attribute(
    task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Count = CHUNK, models: whole(2) = 32,
    share: Share = 0.5, steps: Count = 20, batch: Count = 32, rate: Positive = 1e-3, normalise: Flag = False,
) -> np.ndarray:  # fmt: skip
    """Covariances over ``models`` perturbed models, [Q, N], in nats squared (``normalise``: correlations).

    Each takes ``steps`` Adam steps of ``rate`` on batches of ``batch`` out of a random ``share`` of the documents.
    Rank at most ``models`` - 1. Memory: the models, kept for the next queries, and (N + Q) x ``models`` losses.
    """
    members = perturbed_models(task, train, seed, models, share, steps, batch, rate)
    read = [[losses(task.loss_fn, params, part, chunk=chunk) for part in (queries, train)] for params in members]
    of_queries, of_train = (np.stack(part).astype(np.float64) for part in zip(*read, strict=True))
    of_queries, of_train = (part - part.mean(0) for part in (of_queries, of_train))
    if normalise:
        of_queries, of_train = (p / np.maximum(p.std(0), 1e-12) for p in (of_queries, of_train))
    return of_queries.T @ of_train / (models - (not normalise))


@remembered()
def perturbed_models(
    task: Task, train: Examples, seed: int, models: int, share: float, steps: int, batch: int, rate: float
) -> list[Params]:
    """The set-up, to which no query is known."""
    draws = [np.random.default_rng([seed, 43, member]) for member in range(models)]
    return [perturbed(task, train, rng, share, steps, batch, rate) for rng in draws]


def perturbed(
    task: Task, train: Examples, rng: np.random.Generator, share: float, steps: int, batch: int, rate: float
) -> Params:
    """The parameters after a short fine-tuning on a random part of the documents."""
    count = n_examples(train)
    members = rng.permutation(count)[: max(1, round(share * count))]
    params = {name: value.detach().clone().requires_grad_() for name, value in task.params.items()}
    optimizer = torch.optim.Adam(params.values(), lr=rate)
    for _ in range(steps):
        optimizer.zero_grad()
        drawn = rng.choice(members, min(batch, len(members)), replace=False)
        task.loss_fn(params, batch_of(take(train, drawn)), "mean").backward()
        optimizer.step()
    return {name: value.detach() for name, value in params.items()}
