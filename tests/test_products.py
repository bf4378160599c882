"""Dot products of gradients from the two sides of each layer equal those of the gradients themselves."""

from dataclasses import replace

import pytest
import torch
from small_tasks import networks, small, task_of
from torch import nn

from tda.curvature import layers
from tda.task import take
from tda.tools import gradients


class Twice(nn.Module):
    """One layer that an example passes twice."""

    def __init__(self):
        super().__init__()
        self.shared, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.shared(torch.tanh(self.shared(x)))))


class Idle(nn.Module):
    """A layer that is never called; its gradient is zero."""

    def __init__(self):
        super().__init__()
        self.head, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x)


class Scaled(nn.Module):
    """A parameter that is no layer's."""

    def __init__(self):
        super().__init__()
        self.head, self.scale = nn.Linear(4, 3), nn.Parameter(torch.tensor([2.0]))

    def forward(self, x):
        return self.scale * self.head(x)


def setting(name):
    torch.manual_seed(0)
    extra = {"twice": Twice, "idle": Idle, "scaled": Scaled}
    if name in extra:
        return task_of(extra[name](), name), small("logistic")[1]
    return small(name)


@pytest.mark.parametrize("name", [*networks(), "twice", "idle", "scaled"])
def test_equal_to_the_products_of_the_gradients(name, monkeypatch):
    task, train = setting(name)
    queries = take(train, slice(3, 8))
    moved = {k: v + 0.1 * torch.randn_like(v) for k, v in task.params.items()}
    formed = []
    slow = gradients.dot_products
    monkeypatch.setattr(gradients, "dot_products", lambda *known: formed.append(known) or slow(*known))
    for at in (task, replace(task, params=moved)):
        right = slow(at, train, queries, 5)
        torch.testing.assert_close(layers.dot_products(at, train, queries, 5), right)
    assert bool(formed) == (name not in ("logistic", "mlp")), "where every layer is passed once no gradient is formed"


def test_captured_in_parts(monkeypatch):
    task, train = small("mlp")
    whole = layers.dot_products(task, train, take(train, slice(0, 4)))
    monkeypatch.setattr(layers, "AT_ONCE", 5)
    torch.testing.assert_close(layers.dot_products(task, train, take(train, slice(0, 4))), whole)


def test_a_task_without_outputs_forms_gradients():
    task, train = small("mlp")
    whole = layers.dot_products(task, train, train)
    torch.testing.assert_close(layers.dot_products(replace(task, outputs_fn=None), train, train), whole)
