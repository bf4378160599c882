"""A loss asked about a handful of examples, before a method runs: does it say what the methods will take it to say?"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from tda import output_loss
from tda.output_loss import IGNORE
from tda.sequences import real_tokens
from tda.task import Examples, Params, Task, chunks, n_examples, take, tensors
from tda.tools.gradients import CHUNK, batch_of

SPREAD = 8  # rows at even distances on which two ways of computing a loss are compared
TOLERANCE = 1e-3  # of a loss of size 1 or more, between two ways of computing it: far above rounding in float32
UNUSUAL = {  # where a column says something that a loss has to read
    "attention_mask": lambda mask: mask == 0,
    "token_type_ids": lambda types: types != 0,
    "position_ids": lambda positions: positions.long() != torch.arange(positions.shape[-1]),
}


def probe(task: Task, examples: Examples, what: str) -> None:
    """Ask the loss, and ``outputs_fn`` where there is one, about a few examples; refuse what would be scored wrongly.
    ``loss_fn.check(examples, what)``, where the loss has one, is asked first.
    """
    getattr(task.loss_fn, "check", lambda *_: None)(examples, what)
    few = take(examples, _telling(examples))
    each, total, count = _losses(task, few, what), _losses(task, few, what, "sum"), n_examples(few)
    for reduction, loss, shape in (("example", each, (count,)), ("sum", total, ())):
        if loss.shape != shape:
            raise ValueError(
                f"task {task.name!r}: loss_fn(params, batch, {reduction!r}) has shape {tuple(loss.shape)} for {count} "
                f"examples, where {shape} is expected."
            )
    if not each.isfinite().all():
        named = broken(task, examples, what)
        raise ValueError(f"task {task.name!r} cannot be attributed.{named} Repair or remove them.")
    alone = [take(few, slice(i, i + 1)) for i in range(count)]
    cut = torch.cat([_losses(task, batch_of(example), what) for example in alone])
    for other, problem, cure in (
        (_losses(task, few, what), "draws at random (two calls differ)", "put the model that it uses into task.model"),
        (torch.cat([_losses(task, example, what) for example in alone]), "mixes the examples of a batch",
         "each example must have a loss of its own"),
        (cut, "reads what follows the last target of an example",
         "give an attention_mask, which says what is padding, or call the ids other than 'input_ids'"),
        (each + (total - each.sum()) / count, "has a 'sum' that is not the sum of its examples", "see tda.task.Task"),
    ):  # fmt: skip
        if gap := _gap(each, other):
            raise ValueError(f"{what}: the loss of task {task.name!r} {problem}, by up to {gap:.3g} nats; {cure}.")
    _refuse_unread(task, few, examples, what)
    if task.outputs_fn is not None:
        _probe_outputs(task, examples, what)


class _Watched(dict):
    """A batch that remembers which of its columns were read."""

    get, items, values = Mapping.get, Mapping.items, Mapping.values  # by __getitem__, as ``**batch`` does with __iter__

    def __init__(self, batch: Examples) -> None:
        super().__init__(batch)
        self.read: set[str] = set()

    def __getitem__(self, column: str) -> Tensor:
        self.read.add(column)
        return super().__getitem__(column)

    def __iter__(self) -> Iterator[str]:
        return super().__iter__()


def _refuse_unread(task: Task, few: Examples, examples: Examples, what: str) -> None:
    """What says something and is not read is not scored; a loss that checks its own examples has said so itself."""
    columns = tensors(examples)
    says = [column for column, odd in UNUSUAL.items() if column in columns and odd(columns[column]).any()]
    watched = _Watched(tensors(few))
    with torch.no_grad(), named_errors(f"{what}: the loss of task {task.name!r}", few):
        task.loss_fn(task.params, watched, "example")
    unread = [column for column in says if column not in watched.read]
    if unread and not hasattr(task.loss_fn, "check"):
        raise ValueError(
            f"{what}: the loss of task {task.name!r} does not read {unread}. Remove these columns, or write a loss "
            f"that reads them."
        )


def _telling(examples: Examples) -> np.ndarray:
    """The first example and the shortest one."""
    lengths = real_tokens(examples).sum(1)
    shortest = int(lengths[1:].argmin()) + 1 if len(lengths) > 1 else 0
    return np.unique([0, shortest])


def _losses(task: Task, batch: Examples, what: str, reduction: str = "example") -> Tensor:
    with torch.no_grad(), named_errors(f"{what}: the loss of task {task.name!r}", batch):
        return task.loss_fn(task.params, tensors(batch), reduction).detach()


@contextmanager
def named_errors(who: str, batch: Examples) -> Iterator[None]:
    """Errors of the user's own functions as one line that says which function, and what it was given."""
    try:
        yield
    except KeyError as error:
        has = {k: "tensor" if isinstance(v, Tensor) else "list" for k, v in batch.items()}
        raise ValueError(f"{who} reads the tensor {error}, and the columns are {has}. Give it as a tensor.") from error
    except Exception as error:
        line = " ".join(str(error).split())[:300]
        raise ValueError(f"{who} fails on the first examples ({type(error).__name__}: {line}).") from error


def _gap(loss: Tensor, other: Tensor) -> float:
    """The largest difference of two losses, 0 where it may be rounding."""
    gap = (loss - other).abs()
    return 0.0 if (gap <= TOLERANCE * loss.abs().clamp(min=1.0)).all() else float(gap.max())


def _spread(examples: Examples) -> np.ndarray:
    """Some sixteen rows: the telling ones, some at even distances, and one of every class."""
    n, labels = n_examples(examples), tensors(examples).get("labels")
    rows = [*_telling(examples), *np.linspace(0, n - 1, min(n, SPREAD)).astype(int)]
    if labels is not None and labels.dim() == 1 and not labels.is_floating_point():
        rows += np.unique(labels.numpy(), return_index=True)[1][:SPREAD].tolist()
    return np.unique(rows)


def _probe_outputs(task: Task, examples: Examples, what: str) -> None:
    def outputs(batch: Examples, params: Params = task.params) -> tuple[Tensor, Tensor]:
        with named_errors(f"{what}: outputs_fn of task {task.name!r}", batch):
            found, targets = task.outputs_fn(params, tensors(batch))
        return found, targets

    few, loss = take(examples, _spread(examples)), output_loss.of(task)
    with torch.no_grad():
        found, targets = outputs(few)
    if misfit := loss.misfit(found, targets):
        raise ValueError(f"task {task.name!r}: outputs_fn gives {misfit}")
    if task.output_loss == "cross_entropy":
        _refuse_labels(outputs, examples, what, found.shape[-1] - 1)
    if gap := _gap(_losses(task, few, what), loss.losses(found, targets)):
        raise ValueError(
            f"task {task.name!r}: outputs_fn and loss_fn disagree about the losses of {what}, by up to {gap:.3g}; the "
            f"loss must be the mean {task.output_loss.replace('_', ' ')} of these outputs and targets."
        )
    example, leaves = take(few, slice(0, 1)), {k: v.detach().clone().requires_grad_() for k, v in task.params.items()}
    with torch.enable_grad():
        direct = task.loss_fn(leaves, tensors(example), "sum")
        taken = loss.losses(*outputs(example, leaves)).sum()
        slopes = [torch.autograd.grad(x, list(leaves.values()), materialize_grads=True) for x in (direct, taken)]
    apart, size = (sum(float((a - s * b).square().sum()) for a, b in zip(*slopes, strict=True)) for s in (1, 0))
    if apart > TOLERANCE**2 * size + TOLERANCE**4:
        raise ValueError(
            f"task {task.name!r}: outputs_fn and loss_fn have different gradients on the first of {what}; both must go "
            f"through the same parameters."
        )


def _refuse_labels(outputs: Callable[[Examples], tuple], examples: Examples, what: str, highest: int) -> None:
    """Labels beyond the classes, unless the task means something else by them, and turns them into targets itself."""
    labels = tensors(examples).get("labels")
    if labels is None or labels.is_floating_point():
        return
    odd = ((labels < 0) & (labels != IGNORE)) | (labels > highest)
    suspects = torch.nonzero(odd.reshape(len(labels), -1).any(1)).flatten()[:1].numpy()
    if len(suspects):
        found = outputs(take(examples, suspects))[1].detach()
        wrong = found[(found != IGNORE) & ((found < 0) | (found > highest))]
        if len(wrong):
            raise ValueError(
                f"{what}: row {int(suspects[0])} holds the label {int(wrong[0])}; labels are 0 to {highest}, or "
                f"{IGNORE} where there is no target."
            )


def broken(task: Task, examples: Examples, what: str) -> str:
    """Which examples have no finite loss, as the end of a message; empty if all have one."""

    def finite(rows: slice) -> Tensor:
        try:
            return _losses(task, take(examples, rows), what).isfinite()
        except ValueError:
            if rows.stop - rows.start == 1:
                return torch.tensor([False])
            return torch.cat([finite(slice(i, i + 1)) for i in range(rows.start, rows.stop)])

    bad = ~torch.cat([finite(part) for part in chunks(n_examples(examples), CHUNK)])
    rows = torch.nonzero(bad).flatten()[:5].tolist()
    return f" The losses of {what} {rows} are not finite, or fail." if rows else ""
