"""AbU: attribution by unlearning, for denoisers (Wang et al. 2024, arXiv 2406.09408), the baseline that MUCS extends.

One natural ascent step on the query's loss, then the change of every training image's loss:

    theta' = theta + eta (F + delta)^-1 grad l(x; theta)          score(i) = l_i(theta') - l_i(theta)

F is the empirical Fisher's diagonal with delta = damping x its mean, or EK-FAC (the "AbU+" of later work). The
training images meet the same noise before and after, at 20 evenly spaced timesteps. Positive = the model that forgot
the query is worse at i.

Ours: gradients of the query and of the Fisher are those of the task's own loss, where the paper draws 50 000 times; the
published eta = 0.01 / N is ``unit: absolute``, and by default eta is what raises the query's loss by a tenth.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch

from tda.attribution.registry import StepTooLarge, method
from tda.curvature import empirical, named
from tda.task import Examples, Task, chunks, n_examples, take
from tda.tools.gradients import batch_of
from tda.tools.noisy_losses import SCORES, Reading, before_and_after, check_denoiser, compared, moving_names
from tda.tools.options import Count, Positive, Whole, one_of, option
from tda.tools.perturb import UNITS, natural_steps

FISHERS = ("diagonal", "ekfac")


@dataclass(frozen=True, kw_only=True)
class Options(Reading):
    """The step, and how the losses of the training images are then compared."""

    score: one_of(SCORES) = option("difference", "the change of a loss, or the normalised one")
    draws: Count = option(20, "J, each at a timestep of its own")
    t_min: Whole = option(25, "the least noisy timestep")
    t_max: Whole = option(975, "the noisiest")
    fisher: one_of(FISHERS) = option("diagonal", "F")
    step: Positive = option(0.1, "size of the step, in unit")
    unit: one_of(UNITS) = option("relative", "step as a share of the query's own loss, or eta itself")
    damping: Positive = option(0.1, "of the Fisher, in units of its mean eigenvalue")
    queries_at_once: Count = option(16, "queries moved together, each some six times the model's memory")


@method("abu", family="unlearning", paper="Baselines", needs=("params",), signed=True, cost="per query")
def attribute(task: Task, train: Examples, queries: Examples, options: Options) -> np.ndarray:
    """AbU scores, [Q, N], in squared error per pixel (``score: skew``: in (-1, 1)).

    Raises :class:`StepTooLarge` where the step leaves a model whose losses are not finite.
    """
    check_denoiser(task), options.timesteps()
    part, scores = of_parameters(task, moving_names(task, options.parameters)), []
    if options.fisher == "ekfac":
        precondition = named.inverse("ekfac", part, train, options.damping, options.chunk, rest="diagonal")
    else:
        precondition = empirical.inverse("diagonal", part, train, options.damping, options.chunk)
    for rows in chunks(n_examples(queries), options.queries_at_once):
        batch = batch_of(take(queries, rows))
        moved, _ = natural_steps(part, batch, 1, options.step, 1, options.unit, precondition)
        models = [task.params | {k: v[b].detach() for k, v in moved.items()} for b in range(n_examples(batch))]
        before, after = before_and_after(task, models, train, options)
        broken = torch.nonzero(~after.flatten(1).isfinite().all(1)).flatten() + rows.start
        if len(broken):
            raise StepTooLarge(
                f"abu: a step of step={options.step} ({options.unit}) on queries {broken.tolist()} leaves a model "
                f"whose losses are not finite; a broken model ranks noise. Lower step, or raise damping."
            )
        scores.append(compared(before, after, options))
    return np.concatenate(scores)


def of_parameters(task: Task, names: list[str]) -> Task:
    """The task of which only the parameters ``names`` may move."""
    frozen = {k: v for k, v in task.params.items() if k not in names}
    loss_fn, outputs_fn = task.loss_fn, task.outputs_fn
    return replace(
        task,
        params={k: task.params[k] for k in names},
        loss_fn=lambda params, batch, reduction="mean": loss_fn({**frozen, **params}, batch, reduction),
        outputs_fn=outputs_fn and (lambda params, batch: outputs_fn({**frozen, **params}, batch)),
    )
