"""Gradient dot products and TracIn against captum."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch.utils.data import TensorDataset

from tda import attribute
from tda.studies.conformance.comparison import Comparison, quietly
from tda.studies.conformance.ekfac import model_of
from tda.studies.conformance.settings import anchor
from tda.task import Checkpoint, Examples, Task


def comparisons() -> list[Comparison]:
    return [
        Comparison("gradient dot, MLP", "captum", partial(_ours, "gradient_dot"), partial(_theirs, True), 1e-5),
        Comparison("TracIn, 6 checkpoints, MLP", "captum", partial(_ours, "tracincp"), partial(_theirs, False), 1e-5),
    ]


def _ours(method: str) -> np.ndarray:
    known = anchor("MLP")
    return attribute(method, known.task, known.train, known.queries)


def _theirs(last: bool) -> np.ndarray:
    known = anchor("MLP")
    chosen = known.task.run.checkpoints
    rate = (lambda checkpoint: 1.0) if last else (lambda checkpoint: checkpoint.lr_sum)
    return by_captum(known.task, known.train, known.queries, chosen[-1:] if last else chosen, rate)


@quietly
def by_captum(
    task: Task,
    train: Examples,
    queries: Examples,
    checkpoints: tuple[Checkpoint, ...],
    rate: Callable[[Checkpoint], float] = lambda checkpoint: checkpoint.lr_sum,
    batch: int = 50,
    fast: bool = False,
) -> np.ndarray:
    """captum's TracInCP of a classifier, [Q, N], every checkpoint with the weight that ``rate`` gives it.

    ``fast``: gradients of a batch from the layers' inputs and outputs, for linear layers, instead of one example at a
    time.
    """
    from captum.influence import TracInCP

    def load(model, checkpoint):
        model.load_state_dict(checkpoint.params)
        return rate(checkpoint)

    loss = torch.nn.CrossEntropyLoss(reduction="sum" if fast else "none")
    data = TensorDataset(train["inputs"], train["labels"])
    known = {"loss_fn": loss, "batch_size": batch, "sample_wise_grads_per_batch": fast}
    oracle = TracInCP(model_of(task), data, list(checkpoints), load, **known)
    return oracle.influence((queries["inputs"], queries["labels"])).detach().numpy()
