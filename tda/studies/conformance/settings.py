"""The models and data that all comparisons share: small enough that every oracle takes a second.

The setting of :mod:`tda.evaluation.anchors` (200 digits, 20 queries, full-batch SGD), for logistic regression and a
64-16-10 network; an untrained convolutional net on the same images; an untrained GPT-NeoX on padded random tokens.
"""

from __future__ import annotations

import copy
from functools import cache

import torch

from tda import classifiers, lm
from tda.evaluation import anchors
from tda.task import Examples, Task, take

Setting = tuple[Task, Examples, Examples]
KINDS = ("logistic", "MLP", "CNN", "GPT-NeoX")


@cache
def anchor(kind: str) -> anchors.Anchor:
    """A trained model with its record, ``logistic`` or ``MLP`` (float32); with the latter comes its retrained truth."""
    if kind == "logistic":
        return anchors.load("logreg", designs=())
    return anchors.load("mlp", designs=("half",))


def trained_mlp() -> Setting:
    """``(task, train, queries)`` of the network in float32, with the record of its training."""
    return anchor("MLP").task, anchor("MLP").train, anchor("MLP").queries


@cache
def setting(kind: str) -> Setting:
    """``(task, train, queries)`` of one of :data:`KINDS`, the classifiers in float64 and without a record."""
    if kind not in KINDS:
        raise ValueError(f"setting {kind!r}; one of {KINDS}.")
    if kind == "GPT-NeoX":
        return _language()
    known = anchor("MLP" if kind == "CNN" else kind)
    model = classifiers.cnn(2, 4, seed=0, activation="relu") if kind == "CNN" else copy.deepcopy(known.task.model)
    model = model.double()
    loss_fn, outputs_fn = classifiers.loss_function(model), classifiers.outputs_function(model)
    task = Task(kind, loss_fn, classifiers.parameters(model), model, outputs_fn=outputs_fn)
    train, queries = (part | {"inputs": part["inputs"].double()} for part in (known.train, known.queries))
    return task, train, queries


def _language() -> Setting:
    n, queries, vocabulary, context = 48, 6, 40, 20
    sizes = {"layers": 1, "width": 16, "heads": 2, "context": context, "parallel_residual": False, "init_std": 0.2}
    model = lm.new_model(sizes, vocabulary, 0)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, vocabulary, (n + queries, context), generator=generator)
    length = torch.randint(context // 2, context + 1, (n + queries, 1), generator=generator)
    inside = torch.arange(context) < length
    both = {"input_ids": ids.where(inside, lm.PAD_ID), "labels": ids.where(inside, lm.IGNORE)}
    params = {k: v.detach() for k, v in model.named_parameters()}
    task = Task("GPT-NeoX", lm.loss_function(model), params, model, outputs_fn=lm.outputs_function(model))
    return task, take(both, slice(0, n)), take(both, slice(n, n + queries))
