"""Gradient dot products and TracIn against captum."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils.data import TensorDataset

from tda import attribute
from tda.studies.conformance.comparison import Comparison, quietly
from tda.studies.conformance.curvature import model_of
from tda.studies.conformance.settings import trained_mlp
from tda.task import Examples, Task


def comparisons() -> list[Comparison]:
    return [_of("gradient dot, MLP", "gradient_dot", last=True), _of("TracIn, 6 checkpoints, MLP", "tracincp")]


def _of(quantity: str, method: str, **given: bool) -> Comparison:
    ours, theirs = (lambda: attribute(method, *trained_mlp())), (lambda: by_captum(*trained_mlp(), **given))
    return Comparison(quantity, "captum", ours, theirs, 1e-5)


@quietly
def by_captum(
    task: Task, train: Examples, queries: Examples, last: bool = False, batch: int = 50, fast: bool = False
) -> np.ndarray:
    """captum's TracInCP of a classifier, [Q, N], every checkpoint with the sum of its learning rates as its weight.

    ``last``: the last checkpoint alone, with weight one. ``fast``: gradients of a batch from the layers' inputs and
    outputs, for linear layers, instead of one example at a time.
    """
    from captum.influence import TracInCP

    def load(model, checkpoint):
        model.load_state_dict(checkpoint.params)
        return 1.0 if last else checkpoint.lr_sum

    loss = torch.nn.CrossEntropyLoss(reduction="sum" if fast else "none")
    data = TensorDataset(train["inputs"], train["labels"])
    checkpoints = task.run.checkpoints[-1:] if last else task.run.checkpoints
    options = {"loss_fn": loss, "batch_size": batch, "sample_wise_grads_per_batch": fast}
    oracle = TracInCP(model_of(task), data, list(checkpoints), load, **options)
    return oracle.influence((queries["inputs"], queries["labels"])).detach().numpy()
