"""A small classifier as a task: ``T = 1``, trained in full batches, for tests of methods that need logits."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch.func import functional_call
from torch.nn import functional as F

from tda.task import Checkpoint, Task, TrainingRun


def task_of(model, params, run=None, name="digits"):
    """The classifier ``model`` at ``params``; batches are ``{"inputs": [B, ...], "labels": [B]}``."""

    def outputs_fn(params, batch):
        return functional_call(model, params, (batch["inputs"],)).unsqueeze(1), batch["labels"].unsqueeze(1)

    def loss_fn(params, batch, reduction="mean"):
        logits = functional_call(model, params, (batch["inputs"],))
        example = F.cross_entropy(logits, batch["labels"], reduction="none")
        token = example.unsqueeze(1)
        return {"mean": example.mean(), "sum": example.sum(), "example": example, "token": token}[reduction]

    return Task(name, loss_fn, params, model, run, {}, outputs_fn)


def digits(n, n_queries):
    """``(train, queries)`` of scikit-learn's digits in [0, 1], permuted with seed 0."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    inputs = torch.tensor(data.data[order] / 16.0, dtype=torch.float32)
    labels = torch.tensor(data.target[order]).long()
    parts = [slice(0, n), slice(n, n + n_queries)]
    return tuple({"inputs": inputs[part], "labels": labels[part]} for part in parts)


def mlp(seed=0, hidden=16):
    torch.manual_seed(seed)
    layers = [torch.nn.Linear(64, hidden), torch.nn.ReLU(), torch.nn.Linear(hidden, 10)]
    return torch.nn.Sequential(*layers) if hidden else torch.nn.Sequential(torch.nn.Linear(64, 10))


def train(model, data, steps=300, lr=0.1, momentum=0.9, decay=1e-2, keep=None, checkpoints=()):
    """Full-batch SGD; ``(params, [(step, params), ...])`` after ``steps`` and at ``checkpoints``."""
    chosen = slice(None) if keep is None else torch.as_tensor(keep)
    inputs, labels = data["inputs"][chosen], data["labels"][chosen]
    params = {k: v.detach().clone().requires_grad_() for k, v in model.named_parameters()}
    optimizer = torch.optim.SGD(params.values(), lr=lr, momentum=momentum, weight_decay=decay)
    seen = []
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        F.cross_entropy(functional_call(model, params, (inputs,)), labels).backward()
        optimizer.step()
        if step in checkpoints:
            seen.append((step, {k: v.detach().clone() for k, v in params.items()}))
    return {k: v.detach() for k, v in params.items()}, seen


def run_of(seen, lr_sums, optimizers=None):
    """A training record of checkpoints ``[(step, params), ...]``."""
    optimizers = optimizers or [{}] * len(seen)
    found = tuple(
        Checkpoint(step, lr, lr, lambda p=p, o=o: (p, o))
        for (step, p), lr, o in zip(seen, lr_sums, optimizers, strict=True)
    )
    return TrainingRun(0, found, np.zeros(0), np.zeros((0, 0), int), {})
