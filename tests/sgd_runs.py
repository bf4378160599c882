"""A small digit classifier trained by recorded SGD, in memory: a task, its training images and queries."""

import numpy as np
import torch
from sklearn.datasets import load_digits

from tda import classifiers
from tda.task import Task, take
from tda.training import Recipe, train_recorded


def digits(n=60, queries=5, depth=1, width=6, seed=0, double=False, extra=None, **recipe):
    """``(task, train, queries)``; ``extra(queries)`` gives examples to be planted at the end of the training data."""
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))[: n + queries]
    inputs = torch.tensor(images[order] / 16, dtype=torch.float64 if double else torch.float32)
    data = {"inputs": inputs, "labels": torch.tensor(labels[order])}
    train, asked = take(data, slice(0, n)), take(data, slice(n, None))
    if extra is not None:
        planted = extra(asked)
        train = {k: torch.cat([v, planted[k]]) for k, v in train.items()}
    model = classifiers.mlp(depth, width, seed)
    model = model.double() if double else model
    settings = {"epochs": 12, "batch": 16, "lr": 0.1, "weight_decay": 1e-3, "checkpoints": 6, "schedule": "constant"}
    chosen = Recipe(**{**settings, "optimizer": "sgd", "momentum": 0.9, **recipe})
    loss_fn = classifiers.loss_function(model)
    params, run = train_recorded(loss_fn, classifiers.parameters(model), train, chosen, seed)
    return Task("digits", loss_fn, params, model, run, outputs_fn=classifiers.outputs_function(model)), train, asked
