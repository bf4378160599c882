"""The setting in which other packages were measured on digits: 200 images and 20 queries, full-batch SGD with momentum
from one initialisation, so that the retrained truth has no noise and its ceiling is 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tda import classifiers
from tda.many import stack, train_many, unstack
from tda.task import Examples, Task
from tda.testbeds.digits import outputs, pixels
from tda.training import Recipe, train_recorded

N, QUERIES, SUBSETS = 200, 20, 60
RECIPE = Recipe(
    optimizer="sgd", epochs=300, batch=N, lr=0.1, momentum=0.9, weight_decay=0.01, schedule="constant", checkpoints=6
)
DESIGNS = {"half": 0.5, "leave_5": 0.95}  # share of the images in a subset


@dataclass(frozen=True)
class Anchor:
    """A task with its examples, and the truth of two designs: subsets [M, 200] bool and query losses [M, 1, 20]."""

    task: Task
    train: Examples
    queries: Examples
    subsets: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]


def load(model: str = "mlp", seed: int = 0, count: int = SUBSETS, designs: tuple[str, ...] = tuple(DESIGNS)) -> Anchor:
    """``mlp`` (64-16-10) or ``logreg``, trained, and retrained on ``count`` subsets of each of ``designs``, in seconds;
    ``seed`` draws the subsets.

    The non-linearity of the published numbers is not stated; with ``relu`` Gauss-Newton influence and gradient dot come
    out as published (with ``tanh`` both are better predictors), so that is taken.
    """
    if model not in ("mlp", "logreg"):
        raise ValueError(f"model={model!r}; 'mlp' or 'logreg'.")
    images, labels = pixels()
    order = np.random.RandomState(0).permutation(len(images))
    taken = {"inputs": torch.tensor(images[order]), "labels": torch.tensor(labels[order])}
    train, queries = ({k: v[part] for k, v in taken.items()} for part in (slice(N), slice(N, N + QUERIES)))
    for examples in (train, queries):
        examples["entity"] = [str(label) for label in examples["labels"].tolist()]
    net = classifiers.mlp(int(model == "mlp"), 16, seed=0, activation="relu")
    loss_fn, init = classifiers.loss_function(net), classifiers.parameters(net)
    params, run = train_recorded(loss_fn, init, train, RECIPE, seed=0)
    net.load_state_dict(params)
    encode, outputs_fn = classifiers.encoders(net, params), classifiers.outputs_function(net)
    task = Task(f"anchor_{model}", loss_fn, params, net, run, encode, outputs_fn)
    rng, subsets, truth = np.random.default_rng(seed), {}, {}
    for design in designs:
        kept = [np.isin(np.arange(N), rng.permutation(N)[: round(DESIGNS[design] * N)]) for _ in range(count)]
        subsets[design] = np.stack(kept)
        again = train_many(loss_fn, stack([init] * count), train, RECIPE, subsets[design], [0] * count)
        truth[design] = np.stack([outputs(loss_fn, one, queries) for one in unstack(again)])
    return Anchor(task, train, queries, subsets, truth)
