"""Small image classifiers as tasks: a multilayer perceptron (without hidden layers: logistic regression) and a
convolutional net on 8x8 images.

``tanh`` is smooth, so that the Hessian is defined everywhere, and no unit dies; ``relu`` and ``gelu`` are there for
comparison. A batch holds ``inputs`` [B, 64] float (an image row by row) and ``labels`` [B] long.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from tda.task import Examples, Params, tensors

CLASSES = 10
ACTIVATIONS = {"tanh": nn.Tanh, "relu": nn.ReLU, "gelu": nn.GELU}


def mlp(depth: int, width: int, seed: int, activation: str = "tanh", inputs: int = 64) -> nn.Module:
    """``depth`` hidden layers of ``width`` units (or a list, one width a layer), fresh weights of this seed."""
    widths = [width] * depth if isinstance(width, int) else list(width)
    if len(widths) != depth:
        raise ValueError(f"depth={depth} with {len(widths)} widths {widths}; give one width a hidden layer.")
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for before, after in zip([inputs, *widths], widths, strict=False):
        layers += [nn.Linear(before, after), _activation(activation)]
    return nn.Sequential(*layers, nn.Linear(widths[-1] if widths else inputs, CLASSES)).eval()


def cnn(depth: int, width: int, seed: int, activation: str = "tanh") -> nn.Module:
    """``depth`` 3x3 convolutions of ``width`` channels and stride 2, then a linear layer, drawn by this seed."""
    if not 1 <= depth <= 3:
        raise ValueError(f"depth={depth}; an image of 8 x 8 is halved by each convolution: 1 to 3 of them.")
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    size = 8
    for before in [1, *[width] * (depth - 1)]:
        layers += [nn.Conv2d(before, width, 3, stride=2, padding=1), _activation(activation)]
        size = (size + 1) // 2
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(width * size * size, CLASSES)).eval()


def _activation(name: str) -> nn.Module:
    if name not in ACTIVATIONS:
        raise ValueError(f"activation={name!r}; one of {sorted(ACTIVATIONS)}.")
    return ACTIVATIONS[name]()


def parameters(model: nn.Module) -> Params:
    """The model's parameters as the dict that the loss functions take."""
    return {k: v.detach() for k, v in model.named_parameters()}


def loss_function(model: nn.Module) -> Callable[..., Tensor]:
    """The loss of :class:`tda.task.Task` for a classifier: cross-entropy in nats; an example has one token, [B, 1]."""

    def loss_fn(params: Params, batch: Examples, reduction: str = "mean") -> Tensor:
        if reduction not in ("mean", "sum", "example", "token"):
            raise ValueError(f"reduction={reduction!r}; one of 'mean', 'sum', 'example', 'token'.")
        logits = functional_call(model, params, (batch["inputs"],))
        if reduction == "token":
            return F.cross_entropy(logits, batch["labels"], reduction="none").unsqueeze(1)
        return F.cross_entropy(logits, batch["labels"], reduction="none" if reduction == "example" else reduction)

    loss_fn.check = check_examples
    return loss_fn


def check_examples(examples: Examples, what: str) -> None:
    """Refuse examples that are not ``inputs`` and one class each; asked before a method runs."""
    columns = tensors(examples)
    if set(columns) != {"inputs", "labels"} or columns["labels"].dim() != 1 or columns["labels"].dtype != torch.int64:
        shapes = {name: f"{str(value.dtype)[6:]} {tuple(value.shape)}" for name, value in columns.items()}
        raise ValueError(
            f"{what}: its tensors are {shapes}; a classifier reads 'inputs' [N, ...] and 'labels' [N] int64. Rename or "
            f"remove columns, or write a loss that reads them."
        )
    if (columns["labels"] < 0).any():
        rows = torch.nonzero(columns["labels"] < 0).flatten()[:5].tolist()
        raise ValueError(f"{what}: rows {rows} hold negative labels; a class is a number from 0 on.")


def outputs_function(model: nn.Module) -> Callable[[Params, Examples], tuple[Tensor, Tensor]]:
    """``f(params, batch) -> (logits [B, 1, C], targets [B, 1])`` through the modules of the model."""

    def outputs(params: Params, batch: Examples) -> tuple[Tensor, Tensor]:
        return functional_call(model, params, (batch["inputs"],)).unsqueeze(1), batch["labels"].unsqueeze(1)

    return outputs


def encoders(model: nn.Module, params: Params) -> dict[str, Callable]:
    """``Task.encode``: group (the given class) and features (what the last layer sees)."""
    return {"group": lambda examples: examples["entity"], "features": lambda x: features(model, params, x)}


def accuracy(model: nn.Module, params: Params, examples: Examples) -> float:
    """Share of the examples whose label is the model's first choice."""
    with torch.no_grad():
        choice = functional_call(model, params, (examples["inputs"],)).argmax(-1)
    return float((choice == examples["labels"]).float().mean())


def features(model: nn.Sequential, params: Params, examples: Examples, chunk: int = 512) -> np.ndarray:
    """What the last linear layer sees, [N, D] float32 (of a logistic regression: the image itself)."""
    last = str(len(model) - 1)
    body, kept = model[:-1], {k: v for k, v in params.items() if not k.startswith(f"{last}.")}
    with torch.no_grad():
        parts = [functional_call(body, kept, (inputs,)).flatten(1) for inputs in examples["inputs"].split(chunk)]
    return torch.cat(parts).numpy().astype(np.float32)
