"""Unlearning runs, recorded along the way, and the models on their way that have forgotten equally much.

Runs that differ only in their weights start from the same model and see the same retained pairs in the same order.
They are stacked along a first axis and step together; AdamW works element by element, so stacking changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from tda.many import stack
from tda.studies.guard import losses
from tda.studies.guard.weights import check_rows, check_weights
from tda.task import Examples, Params, take, tensors

AT_ONCE = 6  # runs stepped side by side; the activations of all of them are held at once


@dataclass(frozen=True)
class Plan:
    """``steps`` steps of AdamW at a constant rate ``lr``, each on all forgotten pairs and ``batch`` retained ones;
    every ``every``-th model is recorded, the first included.
    """

    lr: float
    steps: int = 24
    every: int = 2
    batch: int = 40


def unlearn(
    base: str, loss_fn: Callable, logits_of: Callable, start: Params, plan: Plan, fiction, forget: np.ndarray,
    retain: np.ndarray, weights: Mapping[str, np.ndarray], seed: int,
) -> Params:  # fmt: skip
    """The recorded models of one run for each of ``weights`` (name -> [n]): dict of [records, runs, ...] tensors.

    ``forget``, ``retain``: positions of pairs of the corpus ``fiction``. Raises ``ValueError`` for an unknown base
    loss, sets that are empty or overlap, and weights that do not have mean 1.
    """
    check_rows(forget, retain)
    for values in weights.values():
        check_weights(values, len(forget))
    says = losses.named(base).says
    objective = losses.objective(base, loss_fn, logits_of, start, tensors(fiction.encode(forget, says)))
    pool, rng = tensors(fiction.encode(retain)), np.random.default_rng([seed, 52])
    given = torch.from_numpy(np.stack(list(weights.values()))).float()
    size = min(plan.batch, len(retain))
    batches = [take(pool, rng.choice(len(retain), size, replace=False)) for _ in range(plan.steps)]
    parts = [_run(objective, start, part, batches, plan) for part in given.split(AT_ONCE)]
    return {k: torch.cat([part[k] for part in parts], dim=1) for k in start}


def _run(objective: Callable, start: Params, given: Tensor, batches: list[Examples], plan: Plan) -> Params:
    """[records, runs, ...] of a few runs side by side, one for each row of weights."""
    stacked = {k: v.requires_grad_() for k, v in stack([start] * len(given)).items()}
    optimizer = torch.optim.AdamW(stacked.values(), plan.lr, betas=(0.9, 0.99), weight_decay=0.0, fused=True)
    total, kept = vmap(objective, (0, 0, None)), [_copy(stacked)]
    for step, batch in enumerate(batches, start=1):
        optimizer.zero_grad()
        total(stacked, given, batch).sum().backward()
        optimizer.step()
        if step % plan.every == 0:
            kept.append(_copy(stacked))
    return stack(kept)


def _copy(stacked: Params) -> Params:
    return {k: v.detach().clone() for k, v in stacked.items()}


def probabilities(loss_fn: Callable, models: Params, examples: Examples) -> np.ndarray:
    """exp(-mean loss of the answer's tokens) of every example under every model, [M, n]; ``models``: [M, ...]."""
    inputs = tensors(examples)
    with torch.no_grad():
        losses_of = vmap(lambda params: loss_fn(params, inputs, "example"), chunk_size=8)(models)
    return losses_of.neg().exp().numpy()


def along(loss_fn: Callable, recorded: Params, examples: Examples) -> np.ndarray:
    """:func:`probabilities` of recorded models, [records, runs, n]."""
    lead = next(iter(recorded.values())).shape[:2]
    flat = {k: v.flatten(0, 1) for k, v in recorded.items()}
    return probabilities(loss_fn, flat, examples).reshape(*lead, -1)


def matched(loss_fn: Callable, recorded: Params, plan: Plan, forget: Examples, target: float, halvings: int = 8):
    """Of each run, the first model on its way whose mean probability of the forgotten answers is ``target``.

    Between two recorded models the parameters are interpolated, and the place is found by bisection. Returns the
    models [runs, ...], their steps [runs] (not whole), and whether each run gets there [runs]; one that does not is
    represented by its last model. ``ValueError`` if the target is not below where all runs start.
    """
    reached = along(loss_fn, recorded, forget).mean(-1)
    if not (reached[0] > target).all():
        raise ValueError(f"target {target:.3f} is not below the probability at the start, {reached[0, 0]:.3f}.")
    there = (reached <= target).any(0)
    after = np.where(there, (reached <= target).argmax(0), len(reached) - 1)
    low, high = (after - 1.0) * plan.every, after * float(plan.every)
    low[~there] = high[~there]
    for _ in range(halvings):
        middle = (low + high) / 2
        above = probabilities(loss_fn, at_steps(recorded, plan, middle), forget).mean(-1) > target
        low, high = np.where(above, middle, low), np.where(above, high, middle)
    return at_steps(recorded, plan, high), high, there


def at_steps(recorded: Params, plan: Plan, steps: np.ndarray) -> Params:
    """The models of all runs at the given steps [runs], the parameters interpolated between records."""
    place = np.clip(np.asarray(steps) / plan.every, 0, len(next(iter(recorded.values()))) - 1)
    low = np.minimum(place.astype(int), len(next(iter(recorded.values()))) - 2)
    t, runs = torch.from_numpy(place - low).float(), torch.arange(len(place))

    def between(v: Tensor) -> Tensor:
        first, then = v[torch.from_numpy(low), runs], v[torch.from_numpy(low + 1), runs]
        return torch.lerp(first, then, t.view(-1, *[1] * (v.dim() - 2)))

    return {k: between(v) for k, v in recorded.items()}


def collateral(
    loss_fn: Callable, logits_of: Callable, start: Params, plan: Plan, fiction, forget: np.ndarray,
    kept: Sequence[Examples],
) -> np.ndarray:  # fmt: skip
    """By how much the mean loss of each set of kept examples rises when one forgotten pair alone is unlearned by
    ``plan`` (GA), [sets, n] nats: what an alignment foretells.
    """
    other = np.setdiff1d(fiction.rows("places"), forget)[:1]  # gradient ascent looks at no retained pair
    alone = {"alone": np.ones(1)}
    runs = [unlearn("GA", loss_fn, logits_of, start, plan, fiction, row[None], other, alone, 0) for row in forget]
    ends = {k: torch.cat([run[k][-1] for run in runs]) for k in start}
    return np.stack([mean_losses(loss_fn, ends, part) - mean_losses(loss_fn, stack([start]), part) for part in kept])


def mean_losses(loss_fn: Callable, models: Params, examples: Examples) -> np.ndarray:
    """Mean loss of the examples under every model, [M]."""
    return -np.log(probabilities(loss_fn, models, examples)).mean(1)
