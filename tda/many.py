"""Many small models trained side by side: one step of all of them is a few batched products.

Stacked along a first axis, with ``vmap`` over it, a step of 64 models of a few thousand parameters takes about as long
as a step of three. Every model ends where :func:`tda.training.train` would have taken it, up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.func import vmap

from tda.recipe import Recipe, data_order, schedule, steps_of
from tda.task import Examples, Params, chunks, n_examples, tensors

AT_ONCE = 64  # models stacked: of 8, 16, 32, 64 and 128 the fastest for 650 to 4,800 parameters and batches of 32


def stack(models: Sequence[Params]) -> Params:
    """Parameters of M models as one dict of [M, ...] tensors."""
    return {k: torch.stack([params[k] for params in models]) for k in models[0]}


def unstack(stacked: Params) -> list[Params]:
    """The inverse of :func:`stack`; the parts share memory with the whole."""
    return [{k: v[i] for k, v in stacked.items()} for i in range(n_examples(stacked))]


def train_many(
    loss_fn: Callable[..., Tensor],
    init: Params,
    data: Examples,
    recipe: Recipe,
    masks: np.ndarray,
    seeds: Sequence[int],
    how: str = "filter",
    chunk: int = AT_ONCE,
) -> Params:
    """Minimise the mean example loss of M models, each from its own ``init`` (left untouched).

    ``init`` and the result: dicts of [M, ...] tensors (:func:`stack`). ``masks`` [M, N] bool: the examples of each
    model, applied by ``how`` as in :mod:`tda.recipe`. ``seeds`` [M]: the data order of each model. ``recipe``: SGD,
    not clipped. Memory: ``chunk`` x (3 parameters + batch x activations + steps x batch x 12 bytes).
    Raises ``ValueError`` for masks, seeds or parameters that do not fit together, and for a loss that diverges.
    """
    masks, count, n = np.asarray(masks), n_examples(init), n_examples(data)
    if recipe.optimizer != "sgd" or recipe.clip is not None:
        raise ValueError(
            f"train_many steps by SGD without clipping; got optimizer={recipe.optimizer!r}, clip={recipe.clip}. Train "
            f"such models one at a time (tda.training.train)."
        )
    if masks.shape != (count, n) or masks.dtype != bool or not masks.any(1).all() or len(seeds) != count:
        raise ValueError(
            f"{count} initial models, {n} examples, {len(seeds)} seeds, masks {masks.dtype} {masks.shape}: masks must "
            f"be bool [models, examples] with at least one example each, and there must be one seed a model."
        )
    done = [
        _train({k: v[part] for k, v in init.items()}, loss_fn, data, recipe, masks[part], seeds[part], how)
        for part in chunks(count, chunk)
    ]
    return {k: torch.cat([params[k] for params in done]) for k in init}


def _train(init: Params, loss_fn, data: Examples, recipe: Recipe, masks: np.ndarray, seeds, how: str) -> Params:
    inputs = tensors(data)
    rows, weights, rates = _plan(recipe, masks, seeds, how, next(iter(init.values())).dtype)
    params = {k: v.detach().clone().requires_grad_() for k, v in init.items()}
    momentum = {k: torch.zeros_like(v) for k, v in init.items()}
    objective = vmap(lambda one, batch, weight: (loss_fn(one, batch, "example") * weight).sum())
    for row, weight, rate in zip(rows, weights, rates, strict=True):
        losses = objective(params, {k: v[row] for k, v in inputs.items()}, weight)
        gradients = torch.autograd.grad(losses.sum(), list(params.values()))
        with torch.no_grad():
            for (k, value), gradient in zip(params.items(), gradients, strict=True):
                momentum[k].mul_(recipe.momentum).add_(gradient.add_(value, alpha=recipe.weight_decay))
                value.sub_(momentum[k] * rate.view(-1, *[1] * (value.dim() - 1)))
    for i in range(len(masks)):
        if not all(v[i].isfinite().all() for v in params.values()):
            raise ValueError(f"model {i} of this stack diverged at lr={recipe.lr}. Lower training.lr.")
    return {k: v.detach() for k, v in params.items()}


def _plan(recipe: Recipe, masks: np.ndarray, seeds, how: str, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Examples [S, M, B], their weights in the step's loss [S, M, B], and learning rates [S, M]; zero where a model has
    fewer examples or steps.
    """
    orders = {seed: data_order(masks.shape[1], recipe.epochs, seed) for seed in dict.fromkeys(seeds)}
    plans = [steps_of(orders[seed], recipe.batch, mask, how) for mask, seed in zip(masks, seeds, strict=True)]
    shape = max(map(len, plans)), len(plans), max(len(members) for plan in plans for members, _ in plan)
    rows, weights, rates = np.zeros(shape, np.int64), torch.zeros(shape, dtype=dtype), np.zeros(shape[:2])
    for m, plan in enumerate(plans):
        rates[: len(plan), m] = schedule(recipe, len(plan))
        for s, (members, divisor) in enumerate(plan):
            rows[s, m, : len(members)], weights[s, m, : len(members)] = members, 1 / divisor
    return torch.from_numpy(rows), weights, torch.from_numpy(rates).to(dtype)
