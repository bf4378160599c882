"""Representer points: the last layer's outputs as a sum over the training examples (Yeh et al. 2018).

Let f_i be what the last linear layer sees (with a one where it has a bias), Theta its weights, phi = Theta f its
outputs. Where Theta minimises ``(1/N) sum_i l_i + lambda |Theta|^2`` over frozen f, its gradient is zero, and

    Theta = sum_i alpha_i f_i^T,   alpha_i = -1 / (2 lambda N) dl_i / dphi_i = (e_{y_i} - p_i) / (2 lambda N)
    score(q, i) = alpha_{i, y_q} <f_i, f_q>      the part of i in the output of the query's class y_q

summed over i it *is* that output. An example has one position, or those of its target tokens: alpha_is is divided by
their number, the score is summed over the document's and averaged over the query's. A trained network does not stand at
this minimum, so the layer is fitted again from its own weights (of a given network the paper fits the outputs, as we
read it; ours fits the labels, of which the formula speaks). ``output="loss"`` replaces the query's class by the slope
of its loss: with the layer as it is, that is the gradient dot of the last layer over 2 lambda N.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tda.attribution.registry import method
from tda.curvature.layers import watching
from tda.output_loss import IGNORE, require_classes
from tda.task import Examples, Task, chunks, n_examples, take
from tda.tools.cache import remembered
from tda.tools.gradients import batch_of
from tda.tools.options import Count, Positive, Whole, one_of

CHUNK = 128  # examples whose states are held together: chunk x T x (width + classes) x 4 bytes


@dataclass(frozen=True)
class Head:
    """The target positions of some examples: states f [P, D], outputs phi [P, C], targets y [P], the example of each
    position [P] and the share of it in its example's loss [P].
    """

    states: Tensor
    outputs: Tensor
    targets: Tensor
    example: Tensor
    share: Tensor


def head_of(task: Task, examples: Examples, chunk: int = CHUNK) -> Head:
    """What the last linear layer of a task sees and gives at every target. ``ValueError`` where there is none, or where
    it does not give the outputs.
    """
    linear = [(name, module) for name, module in task.model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ValueError(f"representer: the model of task {task.name!r} has no linear layer; choose another method.")
    name, module = linear[-1]
    found = []
    for part in chunks(n_examples(examples), chunk):
        with torch.no_grad(), watching({name: module}) as seen:
            outputs, targets = task.outputs_fn(task.params, batch_of(take(examples, part)))
        states, given = seen[name][-1]
        if given.shape[-1] != outputs.shape[-1] or not torch.allclose(given.reshape(outputs.shape), outputs):
            raise ValueError(
                f"representer: the outputs of task {task.name!r} are not those of its last linear layer {name!r}; "
                f"choose another method."
            )
        states, target = states.reshape(*targets.shape, -1), targets != IGNORE
        if module.bias is not None:
            states = torch.cat([states, torch.ones_like(states[..., :1])], -1)
        row = torch.arange(part.start, part.stop).unsqueeze(1).expand_as(targets)
        share = (1 / target.sum(1, keepdim=True)).expand_as(targets)
        found.append([x[target] for x in (states, outputs, targets, row, share)])
    return Head(*(torch.cat(parts) for parts in zip(*found, strict=True)))


@remembered(2)
def fitted(task: Task, train: Examples, penalty: float, iterations: int, chunk: int) -> tuple[Head, Tensor]:
    """The documents' :class:`Head` and its weights Theta [C, D] (bias last) after at most so many steps of L-BFGS."""
    head = head_of(task, train, chunk)
    linear = [module for module in task.model.modules() if isinstance(module, nn.Linear)][-1]
    names = {id(p): name for name, p in task.model.named_parameters()}
    parts = [linear.weight] + ([linear.bias.unsqueeze(1)] if linear.bias is not None else [])
    given = [task.params[names[id(p)]] for p in (linear.weight, linear.bias) if p is not None]
    theta = torch.cat([value.reshape(part.shape) for value, part in zip(given, parts, strict=True)], 1).detach().clone()
    if not iterations:
        return head, theta
    states, weight = head.states.double(), head.share.double() / n_examples(train)
    precise = theta.double().requires_grad_()
    stop = {"tolerance_grad": 1e-7, "tolerance_change": 0.0, "line_search_fn": "strong_wolfe"}
    optimizer = torch.optim.LBFGS([precise], max_iter=iterations, max_eval=2 * iterations, history_size=20, **stop)

    def closure() -> Tensor:
        optimizer.zero_grad()
        each = F.cross_entropy(states @ precise.T, head.targets, reduction="none")
        loss = (each * weight).sum() + penalty * precise.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    return head, precise.detach().to(theta.dtype)


def coefficients(head: Head, theta: Tensor, penalty: float, count: int) -> Tensor:
    """alpha of every position [P, C], of ``count`` examples."""
    away = F.one_hot(head.targets, len(theta)) - (head.states @ theta.T).softmax(-1)
    return away * head.share.unsqueeze(1) / (2 * penalty * count)


@method("representer", family="representation", paper="Yeh et al. 2018", needs=("params", "outputs"), signed=True)
def attribute(
    task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Count = CHUNK, penalty: Positive = 0.01,
    iterations: Whole = 100, output: one_of(("class", "loss")) = "class",
) -> np.ndarray:  # fmt: skip
    """Representer scores, [Q, N]; a part of a logit. ``penalty`` is lambda, ``iterations`` those of the fit (0: none).

    Memory: (N + Q) x D x C x 4 bytes. Raises ``ValueError`` for a task without classes or without a linear last layer.
    """
    require_classes(task, "representer", "Choose another method.")
    head, theta = fitted(task, train, penalty, iterations, chunk)
    alpha, asked = coefficients(head, theta, penalty, n_examples(train)), head_of(task, queries, chunk)
    wanted = F.one_hot(asked.targets, len(theta)).to(alpha.dtype)
    if output == "loss":
        wanted = wanted - (asked.states @ theta.T).softmax(-1)
    documents = _summed(alpha, head, n_examples(train))
    return (_summed(wanted * asked.share.unsqueeze(1), asked, n_examples(queries)) @ documents.T).numpy()


def _summed(left: Tensor, head: Head, count: int) -> Tensor:
    """Sum over the positions of each example of the outer product of ``left`` [P, C] and f, flat: [count, C D]."""
    sums = torch.zeros(count, left.shape[1] * head.states.shape[1], dtype=left.dtype)
    for part in chunks(len(left), 1024):
        outer = torch.einsum("pc,pd->pcd", left[part], head.states[part]).flatten(1)
        sums.index_add_(0, head.example[part], outer)
    return sums
