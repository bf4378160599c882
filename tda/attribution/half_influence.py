"""Half-model influence: influence at models that saw a random half of the documents, averaged over several halves.

A model trained on everything says little about what it has memorised: the gradient of a document inside of a fit is
its residual shrunk by its leverage. At a model that left the document out it is not. So train k models on halves of
one's own, never a subset or seed of a bank, and at each model j, with the curvature C_j of its own half, take for
*all* documents

    s_j(q, i) = g_q^T (C_j + d)^-1 g_i.

*Balance*: the scores of the documents inside of the half, and of those outside, are divided by their own root mean
square, per query; leverage shrinks the first and not the second. *Average* over j (and over moments of the runs, where
training has not converged). *Combine* a few dampings d by non-negative least squares on the k models' own losses, each
predicted from the others' scores:

    -log l_q(theta_j)  ~  sum_d a_d <mean_{l != j} s_l^d(q), S_j>,   a_d >= 0, centred over j.

Optionally *regress* what the scores leave on the losses of m further halves (:mod:`tda.tools.residual`).

Ours; influence at models of the bank's regime instead of one model, the balance, and a prior that grows with the
squared influence are what we add to Koh and Liang (2017), TRAK's ensembles (Park et al. 2023) and datamodels (Ilyas et
al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from scipy.optimize import nnls

from tda.attribution.registry import method
from tda.curvature import named
from tda.curvature.second_derivatives import SmallGGN
from tda.task import Examples, Params, Task, n_examples, take
from tda.tools import halves, residual
from tda.tools.cache import remembered
from tda.tools.gradients import CHUNK, matrix, swept
from tda.tools.options import Count, Flag, NotNegative, Positive, Share, Whole, one_of, option, whole

CURVATURES = ("ggn", "ekfac", "empirical_fisher")
DAMPINGS = (0.01, 0.1, 1.0, 10.0)  # relative; what is combined
KEPT = 2000  # parameters of a network whose Gauss-Newton matrices are kept; larger ones are made anew


@dataclass(frozen=True, kw_only=True)
class Options:
    """The halves, the influence at each, and how they are put together."""

    seed: Whole = option(0, "draws the halves and their models' seeds")
    chunk: Count = option(CHUNK, "examples whose gradients are formed together")
    models: whole(2) = option(10, "k, halves whose gradients are taken")
    share: Share = option(0.5, "of the documents in a subset; at one half they come in pairs without common documents")
    curvature: one_of(CURVATURES) = option("ekfac", "of the own half; ggn: exact, for small classifiers")
    damping: NotNegative = option(0.0, f"d, relative; 0: {DAMPINGS} combined on the models' own losses")
    balanced: Flag = option(True, "documents inside and outside of a half are scaled apart")
    moment: Whole = option(0, "which of the recorded moments of training, 1 the earliest; 0: the end")
    around: Whole = option(0, "so many moments before and after it are taken, too, as far as there are")
    residual: Whole = option(0, f"m, further halves whose losses are regressed on, at least {residual.LEAST}; 0: none")
    floor: Positive = option(0.1, "c of the regression's prior")

    def __post_init__(self) -> None:
        if 0 < self.residual < residual.LEAST:
            raise ValueError(
                f"half_influence: residual={self.residual}; at least {residual.LEAST} further halves, or 0 for none."
            )
        if self.around and not self.moment:
            raise ValueError("half_influence: around needs a moment to be around; moment=0 is the end of training.")


@method(
    "half_influence", family="retraining", paper="ours", needs=("params", "outputs", "retrain"), signed=True,
)  # fmt: skip
def attribute(task: Task, train: Examples, queries: Examples, options: Options) -> np.ndarray:
    """Half-model influence [Q, N], in units of a unit-scaled score or, with a residual, of nats of log loss.

    For the next queries, the k + m models are kept, and of 32 models (or moments) the factors of EK-FAC or, up to
    ``KEPT`` parameters, GGN. Gradients of documents are formed again (k x moments x N x P numbers are too many).
    Memory: (k x moments + m) models, the dampings x Q x P x 4 bytes of solutions, what is kept of curvatures and, of
    every model, dampings x Q x N scores. Raises ``ValueError`` for fewer than two halves, a document in every subset or
    in none, losses that no damping predicts, and what ``retrain_many`` refuses.
    """
    masks = halves.draw_covering(n_examples(train), options.models, options.seed, options.share)
    parts = contributions(task, train, queries, masks, own_models(task, masks, options), options)
    scores = (
        combine(parts, masks, own_losses(task, queries, masks, options)) if len(parts[0]) > 1 else parts.mean((0, 1))
    )
    if not options.residual:
        return scores.astype(np.float32)
    more, seeds, log_losses = further_halves(task, train, queries, options)
    return residual.regress(scores, more, -log_losses, options.floor, seeds).weights.astype(np.float32)


def further_halves(
    task: Task, train: Examples, queries: Examples, options: Options
) -> tuple[np.ndarray, list[int], np.ndarray]:
    """Of the residual's models: the subsets [m, N], the seeds [m], and the log losses [Q, m] of the queries."""
    masks = halves.draw(n_examples(train), options.residual, options.seed, options.share, stream=1)
    seeds = halves.seeds_from(options.seed, len(masks), 1, halves.SHARING)
    models = halves.trained(task, masks, seeds)
    return masks, seeds, halves.log_losses(task, [moments[-1] for moments in models], queries)


def own_models(task: Task, masks: np.ndarray, options: Options) -> list[list[Params]]:
    """Of every half, the parameters at its recorded moments, or at the end alone."""
    recorded = 1
    if options.moment:
        recorded = task.run.recipe.checkpoints if task.run.recipe else 1
        if options.moment > recorded:
            raise ValueError(
                f"half_influence: moment={options.moment}; the recipe of {task.name!r} records {recorded} moments."
            )
    return halves.trained(task, masks, halves.seeds_from(options.seed, len(masks)), recorded)


def own_losses(task: Task, queries: Examples, masks: np.ndarray, options: Options) -> np.ndarray:
    """Log losses [Q, k] of the queries at the end of every half's training."""
    return halves.log_losses(task, [moments[-1] for moments in own_models(task, masks, options)], queries)


def contributions(
    task: Task, train: Examples, queries: Examples, masks: np.ndarray, models: Sequence[list[Params]], options: Options
) -> np.ndarray:
    """The (balanced) scores at ``models``, each the moments of a run on the half in ``masks``, [k, dampings, Q, N]
    float32; the mean over the chosen moments.
    """
    dampings = (options.damping,) if options.damping else DAMPINGS
    last, found = options.moment + options.around, []
    for mask, moments in zip(masks, models, strict=True):
        moments = moments[max(0, options.moment - options.around - 1) : last] if options.moment else moments[-1:]
        scores = []
        for params in moments:
            here = replace(task, params=params)
            raw = at_model(here, train, queries, mask, options.curvature, dampings, options.seed, options.chunk)
            scores.append(balance(raw, mask) if options.balanced else balance(raw, np.ones_like(mask)))
        found.append(np.mean(scores, 0, dtype=np.float32))
    return np.stack(found)


@remembered(96)
def at_model(
    task: Task, train: Examples, queries: Examples, mask: np.ndarray, curvature: str, dampings: tuple[float, ...],
    seed: int, chunk: int,
) -> np.ndarray:  # fmt: skip
    """``g_q^T (C + d)^-1 g_i`` for all documents, C the curvature of those in ``mask``: [dampings, Q, N] float32."""
    half = take(train, mask)
    asked = matrix(task, queries, chunk)
    if curvature == "ggn":
        made = small_ggn if sum(p.numel() for p in task.params.values()) <= KEPT else small_ggn.__wrapped__
        operator = made(task, half, chunk)
    else:
        operator = named.operator(curvature, task, half, rest="diagonal", seed=seed, chunk=chunk)
    shifts = [named.absolute_damping(operator, damping) for damping in dampings]
    if curvature == "ggn":
        solutions = [operator.solve(asked, shift) for shift in shifts]
    else:
        solutions = operator.functions([partial(named.damped, damping=shift) for shift in shifts], asked)
    scores = swept(task, train, lambda block: torch.cat([block @ one.T for one in solutions], 1), chunk).T
    return scores.reshape(len(dampings), len(asked), -1).numpy()


@remembered(32)
def small_ggn(task: Task, half: Examples, chunk: int) -> SmallGGN:
    """The Gauss-Newton matrix of a half, kept for the next queries: at most 2 x ``KEPT``^2 x 8 bytes, 64 MB."""
    return SmallGGN(task, half, chunk)


def balance(scores: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Scores [..., N] divided by their root mean square, inside of ``mask`` [N] and outside of it apart."""
    scaled = np.empty_like(scores)
    for side in (mask, ~mask):
        size = np.sqrt((scores[..., side].astype(np.float64) ** 2).mean(-1, keepdims=True)) if side.any() else 1.0
        scaled[..., side] = scores[..., side] / np.maximum(size, np.finfo(np.float32).tiny)
    return scaled


def combine(parts: np.ndarray, masks: np.ndarray, log_losses: np.ndarray) -> np.ndarray:
    """The mean over halves of the scores ``parts`` [k, dampings, Q, N], and of dampings with the weights that predict
    the halves' own losses [Q, k] best: non-negative least squares over all queries, each scaled to unit variance, model
    j predicted from the other models.
    """
    count = len(parts)
    total = parts.sum(0, dtype=np.float64)
    predicted = np.stack([((total - part) / (count - 1)) @ mask for part, mask in zip(parts, masks, strict=True)], -1)
    predicted, y = (centred(values) for values in (predicted, -log_losses))  # [dampings, Q, k], [Q, k]
    size = np.maximum(y.std(-1, keepdims=True), np.finfo(float).tiny)
    weights, _ = nnls((predicted / size).reshape(len(predicted), -1).T, (y / size).ravel())
    if not weights.any():
        raise ValueError(
            f"half_influence: at no damping of {DAMPINGS} do the scores predict the losses of the {count} own models. "
            f"Take more models, or state a damping."
        )
    return np.tensordot(weights, total / count, 1)


def centred(values: np.ndarray) -> np.ndarray:
    return values - values.mean(-1, keepdims=True)
