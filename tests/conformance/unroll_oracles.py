"""Unrolling and SOURCE against autograd: backward passes through a training loop that is written with plain tensors."""

from __future__ import annotations

import numpy as np
import torch
from scipy.stats import spearmanr

from tda.attribution.gradients import matrix
from tda.attribution.source import Segment, scores_of
from tda.attribution.unroll import Recording, replayed, unrolled
from tda.task import Task, take

N, WIDTH, QUERIES = 24, 6, 5


def rows() -> list[dict]:
    """One dict a comparison: quantity, oracle, oracle_version, max_rel_diff, rank_correlation, tolerance, pass."""
    return [
        _unrolled(momentum=0.0, weight_decay=0.0),
        _unrolled(momentum=0.9, weight_decay=0.01),
        _source("exact", "SOURCE, exact SGD form, constant curvature", steps=60, lr=0.1, tolerance=1e-8),
        _source("exponential", "SOURCE, exponential form, small rate", steps=600, lr=0.002, tolerance=0.05),
    ]


def by_autograd(loss_fn, data: dict, queries: dict, recording: Recording) -> np.ndarray:
    """- d l_q(theta_T) / d w, [Q, N], by backward passes through the whole training loop."""
    weights = torch.ones(len(data["labels"]), dtype=torch.float64, requires_grad=True)
    params = {k: v.clone().requires_grad_() for k, v in recording.initial.items()}
    velocity = {k: torch.zeros_like(v) for k, v in params.items()}
    for (members, divisor), rate in zip(recording.steps, recording.rates, strict=True):
        losses = loss_fn(params, take(data, members), "example")
        objective = (weights[torch.as_tensor(members)] * losses).sum() / divisor
        gradients = torch.autograd.grad(objective, list(params.values()), create_graph=True)
        for (k, v), g in zip(list(params.items()), gradients, strict=True):
            velocity[k] = recording.momentum * velocity[k] + g + recording.weight_decay * v
            params[k] = v - rate * velocity[k]
    final = loss_fn(params, queries, "example")
    return -np.stack([torch.autograd.grad(one, weights, retain_graph=True)[0].numpy() for one in final])


def _draw(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _reduced(example: torch.Tensor, reduction: str) -> torch.Tensor:
    return {"mean": example.mean, "sum": example.sum, "example": lambda: example}[reduction]()


def _unrolled(momentum: float, weight_decay: float) -> dict:
    def loss_fn(params, batch, reduction="mean"):
        logits = torch.tanh(batch["inputs"] @ params["1.weight"].T + params["1.bias"]) @ params["2.weight"].T
        return _reduced(torch.nn.functional.cross_entropy(logits, batch["labels"], reduction="none"), reduction)

    start = {"1.weight": 0.5 * _draw(0, 8, WIDTH), "1.bias": 0.1 * _draw(1, 8), "2.weight": 0.5 * _draw(2, 3, 8)}
    data = {"inputs": _draw(3, N, WIDTH), "labels": torch.arange(N) % 3}
    queries = {"inputs": _draw(4, QUERIES, WIDTH), "labels": torch.arange(QUERIES) % 3}
    batches = [part for e in range(4) for part in np.array_split(np.random.default_rng(e).permutation(N), [7, 14, 21])]
    steps = [(members, len(members)) for members in batches]
    recording = Recording(start, steps, 0.2 * np.linspace(1, 0.2, len(steps)), momentum, weight_decay)
    found = unrolled(loss_fn, data, queries, recording)[0].numpy()
    name = f"unrolling, mini-batches, momentum {momentum:g}, weight decay {weight_decay:g}"
    return _row(name, found, by_autograd(loss_fn, data, queries, recording), 1e-8)


def _source(variant: str, name: str, steps: int, lr: float, tolerance: float) -> dict:
    """Linear examples and one spring that holds all the curvature: SOURCE's assumptions, made true."""
    root = _draw(5, WIDTH, WIDTH)
    curvature = root @ root.T / WIDTH

    def loss_fn(params, batch, reduction="mean"):
        bent = 0.5 * batch["labels"] * (params["w"] @ curvature @ params["w"])
        return _reduced(batch["inputs"] @ params["w"] + bent, reduction)

    data = {"inputs": _draw(6, N, WIDTH), "labels": torch.tensor([0.0] * (N - 1) + [N], dtype=torch.float64)}
    queries = {"inputs": _draw(7, QUERIES, WIDTH), "labels": _draw(8, QUERIES)}
    recording = Recording({"w": _draw(9, WIDTH)}, [(np.arange(N), N)] * steps, np.full(steps, lr), 0.5, 0.01)
    task = Task("toy", loss_fn, replayed(loss_fn, data, recording))
    parts = [Segment((task,), rates, np.ones(N, bool)) for rates in np.array_split(recording.rates, 3)]
    found = scores_of(parts, [_Dense(curvature)] * 3, data, matrix(task, queries), 0.5, 0.01, variant).sum(0)
    wanted = by_autograd(loss_fn, data, queries, recording)
    return _row(name, found[:, :-1], wanted[:, :-1], tolerance)


class _Dense:
    def __init__(self, written: torch.Tensor):
        self.values, self.vectors = torch.linalg.eigh(written)

    def function(self, f, v):
        return v @ self.vectors * f(self.values) @ self.vectors.T


def _row(quantity: str, found: np.ndarray, wanted: np.ndarray, tolerance: float) -> dict:
    worst = float(np.abs(found - wanted).max() / np.abs(wanted).max())
    ranks = float(np.mean([spearmanr(a, b).statistic for a, b in zip(found, wanted, strict=True)]))
    return {"quantity": quantity, "oracle": "autograd", "oracle_version": torch.__version__.split("+")[0],
            "max_rel_diff": worst, "rank_correlation": ranks, "tolerance": tolerance, "pass": worst <= tolerance}  # fmt: skip
