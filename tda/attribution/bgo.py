"""BGO: bidirectional gradient optimisation (Berdoz et al. 2026).

Learn a query a little more, and a little less, and see which training documents notice:

    score(i) = l_i(theta_asc) - l_i(theta_desc)            bidirectional
    score(i) = l_i(theta_asc) - l_i(theta)                 ascent
    score(i) = l_i(theta)     - l_i(theta_desc)            descent

theta_asc and theta_desc come from T preconditioned gradient steps on the query's loss, or from the EWC-regularised
fine-tuning of the first release (:mod:`tda.tools.perturb`). To first order the bidirectional score is
``2 T eta g_i^T P g_q``: influence with the Fisher as its Hessian (:mod:`tda.attribution.fisher`), read off two
sweeps. It is a central difference, so its error is of third order in the step; the one-sided scores carry the
documents' curvature along the step as well. Positive = learning the document and learning the query go the same way
(a proponent).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from tda.attribution.registry import StepTooLarge, method
from tda.curvature import empirical, named
from tda.task import Examples, Params, Task, chunks, n_examples, take
from tda.tools import summed
from tda.tools.cache import remembered
from tda.tools.door import entered
from tda.tools.gradients import CHUNK, batch_of
from tda.tools.options import Count, Positive, Whole, one_of
from tda.tools.perturb import UNITS, ewc_steps, natural_steps, sweep

PRECONDITIONERS = (*empirical.KINDS, "ekfac", "ewc_released", "ewc_corrected")
DIRECTIONS = ("bidirectional", "ascent", "descent")
RANKINGS = ("signed", "absolute")
READING = ("direction", "ranking", "max_rise", "queries_at_once", "seed")


@method("bgo", family="unlearning", paper="BGO", needs=("params",), signed=True, cost="per query")
def attribute(
    task: Task,
    train: Examples,
    queries: Examples,
    *,
    seed: Whole = 0,
    chunk: Count = CHUNK,
    preconditioner: one_of(PRECONDITIONERS) = "diagonal",
    direction: one_of(DIRECTIONS) = "bidirectional",
    ranking: one_of(RANKINGS) = "signed",
    steps: Count = 3,
    step: Positive = 0.1,
    unit: one_of(UNITS) = "relative",
    damping: Positive = 0.1,
    ewc_weight: Positive = 50.0,
    max_rise: Positive = 1.0,
    queries_at_once: Count = 64,
) -> np.ndarray:
    """BGO scores by finite steps, [Q, N], in nats.

    Options: ``preconditioner`` none, diagonal, full (:mod:`tda.attribution.fisher`, with ``damping`` in units of the
    Fisher's scale), ekfac (:mod:`tda.curvature.kronecker`, the Fisher of sampled labels; the diagonal outside linear
    layers), or ewc_released, ewc_corrected (``ewc_weight``); ``direction``; ``ranking`` signed or absolute;
    ``steps`` T; ``step`` in ``unit`` relative (T steps change the query's own loss by ``step`` times itself) or
    absolute (eta, or AdamW's learning rate); ``max_rise``, how far (nats) a step may raise the mean training loss.
    Memory: some six times ``queries_at_once`` models, and what the Fisher needs (the full one is read once for all
    of them, which is what takes the time of a step). No randomness.
    Raises ``ValueError`` for other values, for a zero Fisher and for a query without gradient, and
    :class:`StepTooLarge` where a step breaks the model (the scores would rank its ruins).
    """
    options = (preconditioner, steps, step, unit, damping, ewc_weight, max_rise, chunk, queries_at_once)
    scores = _difference(task, train, queries, direction, options)
    return np.abs(scores) if ranking == "absolute" else scores


@method(
    "bgo_trajectory", family="unlearning", paper="BGO", needs=("params", "checkpoints"), signed=True, cost="per query"
)
def attribute_trajectory(
    task: Task,
    train: Examples,
    queries: Examples,
    *,
    seed: Whole = 0,
    chunk: Count = CHUNK,
    preconditioner: one_of(PRECONDITIONERS) = "diagonal",
    direction: one_of(DIRECTIONS) = "bidirectional",
    ranking: one_of(RANKINGS) = "signed",
    steps: Count = 3,
    step: Positive = 0.1,
    unit: one_of(UNITS) = "relative",
    damping: Positive = 0.1,
    ewc_weight: Positive = 50.0,
    max_rise: Positive = 1.0,
    queries_at_once: Count = 64,
    checkpoints: Whole = 0,
) -> np.ndarray:
    """BGO along the trajectory: finite-step scores at ``checkpoints`` of the run (0: all), summed, [Q, N].

    Each checkpoint's scores are scaled to unit mean magnitude per query and weighted by the learning rate
    (:func:`tda.tools.summed.along`). The other options are those of :func:`attribute`.
    """
    options = (preconditioner, steps, step, unit, damping, ewc_weight, max_rise, chunk, queries_at_once)
    scores = summed.along(
        [
            (_difference(part, train, queries, direction, options), weight)
            for part, weight in summed.trajectory(task, checkpoints)
        ]
    )
    return np.abs(scores) if ranking == "absolute" else scores


def readings(task: Task, train: Examples, queries: Examples, **options) -> dict[tuple[str, str], np.ndarray]:
    """``{(direction, ranking): scores [Q, N]}``: everything that one pair of (shared) sweeps can be read as."""
    return {
        (direction, ranking): attribute(task, train, queries, **options | {"direction": direction, "ranking": ranking})
        for direction in DIRECTIONS
        for ranking in RANKINGS
    }


def _difference(task, train, queries, direction, options) -> np.ndarray:
    """Signed scores [Q, N]."""
    base = base_losses(task, train)
    up = moved_losses(task, train, queries, 1, *options) if direction != "descent" else base
    down = moved_losses(task, train, queries, -1, *options) if direction != "ascent" else base
    return (up - down).numpy()


@remembered(2)
def base_losses(task: Task, train: Examples) -> Tensor:
    """Losses [1, N] of the documents under the model itself."""
    return sweep(task, {k: v.unsqueeze(0) for k, v in task.params.items()}, train)


@remembered(64)
def moved_losses(
    task: Task,
    train: Examples,
    queries: Examples,
    sign: int,
    preconditioner: str,
    steps: int,
    step: float,
    unit: str,
    damping: float,
    ewc_weight: float,
    max_rise: float,
    chunk: int = CHUNK,
    queries_at_once: int = 64,
) -> Tensor:
    """Losses [Q, N] of the documents after moving the model along each query; shared by directions and rankings."""
    move = mover(task, train, sign, preconditioner, steps, step, unit, damping, ewc_weight, chunk)
    base, losses = base_losses(task, train).mean(), []
    for part in chunks(n_examples(queries), queries_at_once):
        models, _ = move(batch_of(take(queries, part)))
        swept = sweep(task, models, train)
        rise = swept.mean(1) - base
        bad = torch.nonzero(~(rise <= max_rise)).flatten().tolist()
        if bad:
            raise StepTooLarge(
                f"bgo: {steps} steps of step={step} ({unit}, sign {sign:+d}) on query {part.start + bad[0]} change the "
                f"mean training loss by {rise[bad[0]]:.3g} nats from {base:.3g}; at most max_rise={max_rise} is "
                f"allowed. Lower step, or raise damping; a broken model ranks noise."
            )
        losses.append(swept)
    return torch.cat(losses)


def mover(task, train, sign, preconditioner, steps, step, unit="relative", damping=0.1, ewc_weight=50.0, chunk=CHUNK):
    """``move(batch of queries) -> (parameters [B, ...], eta [B])`` for one preconditioner and direction."""
    if preconditioner.startswith("ewc"):
        released, diagonal = preconditioner == "ewc_released", empirical.diagonal(task, train, chunk)
        return lambda asked: ewc_steps(task, asked, diagonal, sign, step, steps, unit, ewc_weight, released)
    if preconditioner == "ekfac":
        apply = named.inverse("ekfac", task, train, damping, chunk, rest="diagonal")
    else:
        apply = empirical.inverse(preconditioner, task, train, damping, chunk)
    return lambda asked: natural_steps(task, asked, apply, sign, step, steps, unit)


def token_scores(
    task: Task, train: Examples, queries: Examples, documents: Examples | None = None, **options
) -> np.ndarray:
    """Bidirectional scores of every token, [Q, n, T] nats: how much more the model that unlearnt the query is surprised
    than the one that learnt it.

    ``documents``: what is read (``train`` by default, 2 Q N T numbers; the query itself shows which of its own words
    the step has moved). ``options``: those of :func:`attribute` that move the model. The mean over a document's target
    tokens is its document score; other granularities in :mod:`tda.studies.granularity`.
    """
    given = {"train": train, "queries": queries, "documents": train if documents is None else documents}
    with entered(task, ("params",), **given) as (train, queries, read):
        up, down = (
            sweep(task, perturbed(task, train, queries, sign, **options)[0], read, reduction="token")
            for sign in (1, -1)
        )
        return (up - down).numpy()


def perturbed(task: Task, train: Examples, queries: Examples, sign: int, **options) -> tuple[Params, Tensor]:
    """The moved models themselves, parameters [Q, ...], and eta [Q]: for plots of what a step does.

    ``options``: those of :func:`attribute`; the ones that only concern how its scores are read are ignored.
    """
    settings = {"preconditioner": "diagonal", "steps": 3, "step": 0.1} | options
    settings = {name: value for name, value in settings.items() if name not in READING}
    with entered(task, ("params",), train=train, queries=queries) as (train, queries):
        return mover(task, train, sign, **settings)(batch_of(queries))
