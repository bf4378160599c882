"""BGO: bidirectional gradient optimisation (Berdoz et al. 2026).

Learn a query a little more, and a little less, and see which training documents notice:

    score(i) = l_i(theta_asc) - l_i(theta_desc)            bidirectional; ascent and descent put l_i(theta) on one side

after T preconditioned gradient steps on the query's loss, or the EWC-regularised fine-tuning of the first release
(:mod:`tda.tools.perturb`). To first order it is ``2 T eta g_i^T P g_q``, with an error of third order in the step; the
one-sided scores carry the documents' curvature as well. Positive = document and query are learnt the same way.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from tda.attribution.registry import StepTooLarge, method
from tda.curvature import empirical, named
from tda.task import Examples, Params, Task, chunks, n_examples, take
from tda.tools.cache import remembered
from tda.tools.door import entered
from tda.tools.gradients import CHUNK, batch_of
from tda.tools.options import Count, Positive, Whole, one_of, option, read
from tda.tools.perturb import UNITS, ewc_steps, natural_steps, sweep

PRECONDITIONERS = (*empirical.KINDS, "ekfac", "ewc_released", "ewc_corrected")
DIRECTIONS = ("bidirectional", "ascent", "descent")
RANKINGS = ("signed", "absolute")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a query moves the model, and how the documents' losses are then read."""

    seed: Whole = option(0, "unused, nothing here is random")
    chunk: Count = option(CHUNK, "training documents whose gradients are formed together")
    preconditioner: one_of(PRECONDITIONERS) = option("diagonal", "P, or the elastic penalty of the first release")
    direction: one_of(DIRECTIONS) = option("bidirectional", "which of the three differences")
    ranking: one_of(RANKINGS) = option("signed", "the difference itself, or its magnitude")
    steps: Count = option(3, "T")
    step: Positive = option(0.1, "size of the T steps, in unit")
    unit: one_of(UNITS) = option("relative", "step as a share of the query's own loss, or eta or AdamW's rate itself")
    damping: Positive = option(0.1, "of the Fisher, in units of its mean eigenvalue")
    ewc_weight: Positive = option(50.0, "of the elastic penalty")
    max_rise: Positive = option(1.0, "nats by which the mean training loss may rise before a step is refused")
    queries_at_once: Count = option(64, "queries moved together, each some six times the model's memory")

    def moving(self) -> Options:
        """Without what only says how the moved losses are read: equal for all readings of the same sweeps."""
        return replace(self, seed=0, direction="bidirectional", ranking="signed")


@method("bgo", family="unlearning", paper="BGO", needs=("params",), signed=True, cost="per query")
def attribute(task: Task, train: Examples, queries: Examples, options: Options) -> np.ndarray:
    """BGO scores by finite steps, [Q, N], in nats.

    ``preconditioner`` none, diagonal, full (:mod:`tda.curvature.empirical`), ekfac (the Fisher of sampled labels; the
    diagonal outside linear layers), ewc_released, ewc_corrected. Raises ``ValueError`` for a zero Fisher and a query
    without gradient, and :class:`StepTooLarge` where a step breaks the model (the scores would rank its ruins).
    """
    base, moving = base_losses(task, train), options.moving()
    up = moved_losses(task, train, queries, 1, moving) if options.direction != "descent" else base
    down = moved_losses(task, train, queries, -1, moving) if options.direction != "ascent" else base
    scores = (up - down).numpy()
    return np.abs(scores) if options.ranking == "absolute" else scores


@remembered(2)
def base_losses(task: Task, train: Examples) -> Tensor:
    """Losses [1, N] of the documents under the model itself."""
    return sweep(task, {k: v.unsqueeze(0) for k, v in task.params.items()}, train)


@remembered(64)
def moved_losses(task: Task, train: Examples, queries: Examples, sign: int, options: Options) -> Tensor:
    """Losses [Q, N] of the documents after moving the model along each query; ``sign`` +1 ascends its loss."""
    move = _mover(task, train, sign, options)
    base, losses = base_losses(task, train).mean(), []
    for part in chunks(n_examples(queries), options.queries_at_once):
        models, _ = move(batch_of(take(queries, part)))
        swept = sweep(task, models, train)
        rise = swept.mean(1) - base
        bad = torch.nonzero(~(rise <= options.max_rise)).flatten().tolist()
        if bad:
            raise StepTooLarge(
                f"bgo: {options.steps} steps of step={options.step} ({options.unit}, sign {sign:+d}) on query "
                f"{part.start + bad[0]} change the mean training loss by {rise[bad[0]]:.3g} nats from {base:.3g}; "
                f"at most max_rise={options.max_rise} is allowed. Lower step, or raise damping; a broken model ranks "
                f"noise."
            )
        losses.append(swept)
    return torch.cat(losses)


def _mover(task: Task, train: Examples, sign: int, options: Options) -> Callable[[Examples], tuple[Params, Tensor]]:
    """``move(batch of queries) -> (parameters [B, ...], eta [B])``."""
    kind = options.preconditioner
    moves = {"sign": sign, "step": options.step, "steps": options.steps, "unit": options.unit}
    if kind.startswith("ewc"):
        fisher = empirical.diagonal(task, train, options.chunk)
        moves |= {"fisher": fisher, "weight": options.ewc_weight, "released": kind == "ewc_released"}
        return lambda batch: ewc_steps(task, batch, **moves)
    if kind == "ekfac":
        precondition = named.inverse("ekfac", task, train, options.damping, options.chunk, rest="diagonal")
    else:
        precondition = empirical.inverse(kind, task, train, options.damping, options.chunk)
    return lambda batch: natural_steps(task, batch, **moves, precondition=precondition)


def token_scores(
    task: Task, train: Examples, queries: Examples, documents: Examples | None = None, **options
) -> np.ndarray:
    """Bidirectional scores of every token of ``documents`` (``train`` by default), [Q, n, T] nats; the mean over a
    document's target tokens is its score. ``options``: those that move the model.
    """
    given = {"train": train, "queries": queries, "documents": train if documents is None else documents}
    with entered(task, ("params",), **given) as (train, queries, documents):
        moved = (perturbed(task, train, queries, sign, **options)[0] for sign in (1, -1))
        up, down = (sweep(task, models, documents, reduction="token") for models in moved)
        return (up - down).numpy()


def perturbed(task: Task, train: Examples, queries: Examples, sign: int, **options) -> tuple[Params, Tensor]:
    """The moved models themselves, parameters [Q, ...], and eta [Q]; ``options``: those of :func:`attribute`."""
    chosen = read("bgo", Options, options)
    with entered(task, ("params",), train=train, queries=queries) as (train, queries):
        return _mover(task, train, sign, chosen)(batch_of(queries))
