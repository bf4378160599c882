"""Tasks of a few dozen parameters in float64, whose curvature can be written out the slow obvious way."""

import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from tda.output_loss import IGNORE
from tda.task import Task, n_examples, take, tensors
from tda.tools.gradients import unflatten


def task_of(model, name="small", sequence=False):
    """A task around a module whose output is [B, C], or [B, T, C] for a sequence with labels [B, T + 1], the first
    unused.
    """
    model = model.double()

    def outputs_fn(params, batch):
        logits = functional_call(model, params, (batch["inputs"],))
        return (logits, batch["labels"][:, 1:]) if sequence else (logits.unsqueeze(1), batch["labels"].unsqueeze(1))

    def loss_fn(params, batch, reduction="mean"):
        logits, targets = outputs_fn(params, batch)
        mask = targets != IGNORE
        logp = F.log_softmax(logits, -1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1)
        example = -(logp * mask).sum(1) / mask.sum(1)
        return {"mean": example.mean, "sum": example.sum, "example": lambda: example}[reduction]()

    params = {k: v.detach().clone() for k, v in model.named_parameters()}
    return Task(name, loss_fn, params, model, outputs_fn=outputs_fn)


class Sequence(nn.Module):
    """A linear layer shared over time, a causal mean, a layer called twice; an embedding and a norm."""

    def __init__(self):
        super().__init__()
        self.embed, self.norm = nn.Embedding(5, 3), nn.LayerNorm(3)
        self.shared, self.twice, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 5, bias=False)

    def forward(self, ids):
        x = torch.tanh(self.shared(self.norm(self.embed(ids))))
        x = x.cumsum(1) / torch.arange(1, ids.shape[1] + 1).unsqueeze(1)
        x = torch.tanh(self.twice(torch.tanh(self.twice(x))))
        return self.head(x)


def networks():
    torch.manual_seed(0)
    return {
        "logistic": nn.Linear(4, 3),
        "mlp": nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3, bias=False)),
        "conv": nn.Sequential(
            nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(inplace=True), nn.Conv2d(3, 2, 2, bias=False),
            nn.Flatten(), nn.Linear(2, 3)
        ),
        "sequence": Sequence(),
    }  # fmt: skip


def small(name, n=12):
    """(task, train) of one of :func:`networks`; sequences are padded and have -100 in their midst."""
    task, generator = task_of(networks()[name], name, name == "sequence"), torch.Generator().manual_seed(1)
    if name == "sequence":
        ids, labels = (torch.randint(1, 5, (n, width), generator=generator) for width in (4, 5))
        labels[::2, 4:], labels[1::3, 2], labels[::4, 3:] = IGNORE, IGNORE, IGNORE
        return task, {"inputs": ids, "labels": labels}
    shape = (2, 4, 4) if name == "conv" else (4,)
    inputs = torch.randn(n, *shape, generator=generator, dtype=torch.float64)
    return task, {"inputs": inputs, "labels": torch.randint(0, 3, (n,), generator=generator)}


# --- the slow obvious way


def flat(task):
    return torch.cat([p.flatten() for p in task.params.values()])


def slow_hessian(task, train):
    def loss(vector):
        return task.loss_fn(unflatten(vector, task.params), tensors(train), "mean")

    return torch.autograd.functional.hessian(loss, flat(task))


def slow_jacobians(task, train):
    """Per example: (J [targets, C, P], p [targets, C], labels [targets])."""
    for i in range(n_examples(train)):
        one = tensors(take(train, slice(i, i + 1)))
        labels = one["labels"][0, 1:] if one["labels"].dim() == 2 else one["labels"]
        target = labels != IGNORE

        def logits(vector, one=one, target=target):
            return task.outputs_fn(unflatten(vector, task.params), one)[0][0][target]

        jacobian = torch.autograd.functional.jacobian(logits, flat(task))
        yield jacobian, logits(flat(task)).softmax(-1), labels[target]


def slow_ggn(task, train):
    total = 0
    for jacobian, p, _ in slow_jacobians(task, train):
        for j, q in zip(jacobian, p, strict=True):
            total = total + j.T @ (torch.diag(q) - torch.outer(q, q)) @ j / len(p)
    return total / n_examples(train)


def slow_gradients(task, train):
    """[N, P] from the Jacobians: the gradient of each example's mean loss."""
    rows = []
    for jacobian, p, labels in slow_jacobians(task, train):
        rows.append(torch.einsum("tcp,tc->p", jacobian, p - F.one_hot(labels, p.shape[1])) / len(p))
    return torch.stack(rows)
