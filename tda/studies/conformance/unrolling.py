"""Unrolling and SOURCE against autograd: backward passes through a training loop that is written with plain tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import Tensor

from tda.attribution.unroll import unrolled
from tda.curvature import Dense
from tda.studies.conformance.comparison import Comparison
from tda.task import Task, take
from tda.tools.gradients import matrix
from tda.tools.recorded import Recording, replayed
from tda.tools.segments import Segment, scores_of

N, WIDTH, QUERIES = 24, 6, 5
Problem = tuple  # (loss_fn, data, queries, recording)
Scores = Callable[[Problem], np.ndarray]  # [Q, N]


def comparisons() -> list[Comparison]:
    plain, full, exact, slow = network(0.0, 0.0), network(0.9, 0.01), springs(60, 0.1), springs(600, 0.002)
    return [
        _compared("unrolling, plain SGD", unrolling, by_autograd, plain),
        _compared("unrolling, momentum and weight decay", unrolling, by_autograd, full),
        _compared("SOURCE, exact SGD form", partial(source, "exact"), shared, exact),
        _compared("SOURCE, exponential form, small rate", partial(source, "exponential"), shared, slow, 0.05),
    ]


def _compared(quantity: str, ours: Scores, theirs: Scores, problem: Problem, tolerance: float = 1e-8) -> Comparison:
    return Comparison(quantity, "autograd", lambda: ours(problem), lambda: theirs(problem), tolerance)


def network(momentum: float, weight_decay: float) -> Problem:
    """Mini-batch SGD on a two-layer network, with a rate that falls: nothing about it is constant."""

    def loss_fn(params, batch, reduction="mean"):
        logits = torch.tanh(batch["inputs"] @ params["1.weight"].T + params["1.bias"]) @ params["2.weight"].T
        return _reduced(torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none"), reduction)

    start = {"1.weight": 0.5 * _draw(0, 8, WIDTH), "1.bias": 0.1 * _draw(1, 8), "2.weight": 0.5 * _draw(2, 3, 8)}
    data = {"inputs": _draw(3, N, WIDTH), "labels": torch.arange(N) % 3}
    queries = {"inputs": _draw(4, QUERIES, WIDTH), "labels": torch.arange(QUERIES) % 3}
    batches = [part for e in range(4) for part in np.array_split(np.random.default_rng(e).permutation(N), [7, 14, 21])]
    steps = [(members, len(members)) for members in batches]
    rates = 0.2 * np.linspace(1, 0.2, len(steps))
    return loss_fn, data, queries, Recording(start, steps, rates, momentum, weight_decay)


def springs(steps: int, lr: float) -> Problem:
    """Linear examples, and a last one that holds all the curvature: SOURCE's assumptions, made true."""
    curvature = _curvature()

    def loss_fn(params, batch, reduction="mean"):
        bent = 0.5 * batch["labels"] * (params["w"] @ curvature @ params["w"])
        return _reduced(batch["inputs"] @ params["w"] + bent, reduction)

    data = {"inputs": _draw(6, N, WIDTH), "labels": torch.tensor([0.0] * (N - 1) + [N], dtype=torch.float64)}
    queries = {"inputs": _draw(7, QUERIES, WIDTH), "labels": _draw(8, QUERIES)}
    recording = Recording({"w": _draw(9, WIDTH)}, [(np.arange(N), N)] * steps, np.full(steps, lr), 0.5, 0.01)
    return loss_fn, data, queries, recording


def unrolling(problem: Problem) -> np.ndarray:
    return unrolled(*problem)[0].numpy()


def source(variant: str, problem: Problem) -> np.ndarray:
    """SOURCE in three segments that know the curvature; without the spring, whose gradient is not constant."""
    loss_fn, data, queries, run = problem
    task = Task("springs", loss_fn, replayed(loss_fn, data, run))
    parts = [Segment((task,), rates, np.ones(N, bool)) for rates in np.array_split(run.rates, 3)]
    curvatures = [Dense(_curvature())] * 3
    by_segment = scores_of(parts, curvatures, data, matrix(task, queries), run.momentum, run.weight_decay, variant)
    return by_segment.sum(0)[:, :-1]


def shared(problem: Problem) -> np.ndarray:
    """:func:`by_autograd` without the spring."""
    return by_autograd(problem)[:, :-1]


def by_autograd(problem: Problem) -> np.ndarray:
    """- d l_q(theta_T) / d w, [Q, N], by backward passes through the whole training loop."""
    loss_fn, data, queries, run = problem
    weights = torch.ones(N, dtype=torch.float64, requires_grad=True)
    params = {k: v.clone().requires_grad_() for k, v in run.initial.items()}
    velocity = {k: torch.zeros_like(v) for k, v in params.items()}
    for (members, divisor), rate in zip(run.steps, run.rates, strict=True):
        losses = loss_fn(params, take(data, members), "example")
        objective = (weights[torch.as_tensor(members)] * losses).sum() / divisor
        gradients = torch.autograd.grad(objective, list(params.values()), create_graph=True)
        for (k, v), g in zip(list(params.items()), gradients, strict=True):
            velocity[k] = run.momentum * velocity[k] + g + run.weight_decay * v
            params[k] = v - float(rate) * velocity[k]
    final = loss_fn(params, queries, "example")
    return -np.stack([torch.autograd.grad(one, weights, retain_graph=True)[0].numpy() for one in final])


def _curvature() -> Tensor:
    root = _draw(5, WIDTH, WIDTH)
    return root @ root.T / WIDTH


def _draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _reduced(example: Tensor, reduction: str) -> Tensor:
    return {"mean": example.mean, "sum": example.sum, "example": lambda: example}[reduction]()
