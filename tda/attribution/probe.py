"""A loss asked about a handful of examples, before a method runs: does it say what the methods will take it to say?"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from tda.attribution.gradients import CHUNK, batch_of
from tda.lm import IGNORE, real_tokens
from tda.task import Examples, Task, chunks, n_examples, take, tensors

TOLERANCE = 1e-3  # of a loss of size 1 or more, between two ways of computing it: far above rounding in float32


def probe(task: Task, examples: Examples, what: str) -> None:
    """Ask the loss, and ``outputs_fn`` where there is one, about a few examples; refuse what would be scored wrongly.

    That is a loss that reads other columns or ids than there are, draws at random, mixes the examples of a batch, reads
    what follows an example's last target, or whose reductions or outputs disagree. ``loss_fn.check(examples, what)``,
    where the loss has one, is asked first.
    """
    getattr(task.loss_fn, "check", lambda *_: None)(examples, what)
    few = take(examples, _telling(examples))
    each, count = _losses(task, few, what), n_examples(few)
    if each.shape != (count,):
        raise ValueError(
            f"task {task.name!r}: loss_fn(params, batch, 'example') has shape {tuple(each.shape)} for {count} "
            f"examples, where one loss an example is expected."
        )
    if not each.isfinite().all():
        raise ValueError(
            f"task {task.name!r} cannot be attributed.{broken(task, examples, what)} Repair or remove them."
        )
    alone = [_losses(task, take(few, slice(i, i + 1)), what) for i in range(count)]
    total = _losses(task, few, what, "sum").reshape(1)
    for other, problem, cure in (
        (_losses(task, few, what), "draws at random (two calls differ)", "put the model that it uses into task.model"),
        (torch.cat(alone), "mixes the examples of a batch", "each example must have a loss of its own"),
        (_losses(task, batch_of(few), what), "reads what follows the last target of an example",
         "give an attention_mask, which says what is padding, or call the ids other than 'input_ids'"),
        (each + (total - each.sum()) / count, "has a 'sum' that is not the sum of its examples", "see tda.task.Task"),
    ):  # fmt: skip
        if gap := _gap(each, other):
            raise ValueError(f"{what}: the loss of task {task.name!r} {problem}, by up to {gap:.3g} nats; {cure}.")
    if task.outputs_fn is not None:
        _probe_outputs(task, few, each, examples, what)


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


def _gap(one: Tensor, other: Tensor) -> float:
    """The largest difference of two losses, 0 where it may be rounding."""
    gap = (one - other).abs()
    return 0.0 if (gap <= TOLERANCE * one.abs().clamp(min=1.0)).all() else float(gap.max())


def _probe_outputs(task: Task, few: Examples, each: Tensor, examples: Examples, what: str) -> None:
    def outputs(batch: Examples) -> tuple[Tensor, Tensor]:
        with torch.no_grad(), named_errors(f"{what}: outputs_fn of task {task.name!r}", batch):
            return task.outputs_fn(task.params, tensors(batch))

    logits, targets = outputs(few)
    if logits.dim() != 3 or logits.shape[:2] != targets.shape:
        raise ValueError(
            f"task {task.name!r}: outputs_fn gives logits {tuple(logits.shape)} and targets {tuple(targets.shape)}; "
            f"[B, T, C] and [B, T] are expected (a classifier has T = 1)."
        )
    highest, labels = logits.shape[-1] - 1, tensors(examples).get("labels")
    if labels is not None and not labels.is_floating_point():
        odd = ((labels < 0) & (labels != IGNORE)) | (labels > highest)
        suspects = torch.nonzero(odd.reshape(len(labels), -1).any(1)).flatten()[:1].numpy()
        if len(suspects):  # unless the task means something else by them, and turns them into targets itself
            found = outputs(take(examples, suspects))[1]
            wrong = found[(found != IGNORE) & ((found < 0) | (found > highest))]
            if len(wrong):
                raise ValueError(
                    f"{what}: row {int(suspects[0])} holds the label {int(wrong[0])}; labels are 0 to {highest}, or "
                    f"{IGNORE} where there is no target."
                )
    real = targets != IGNORE
    nll = -logits.log_softmax(-1).gather(-1, targets.clamp(min=0).unsqueeze(-1)).squeeze(-1) * real
    if gap := _gap(each, nll.sum(1) / real.sum(1)):
        raise ValueError(
            f"task {task.name!r}: outputs_fn and loss_fn disagree about the losses of {what}, by up to {gap:.3g} nats; "
            f"the loss must be the mean cross-entropy of these logits and targets."
        )


def broken(task: Task, examples: Examples, what: str) -> str:
    """Which examples have no finite loss, as the end of a message; empty if all have one."""

    def finite(rows: slice) -> Tensor:
        try:
            return _losses(task, take(examples, rows), what).isfinite()
        except ValueError:
            one = rows.stop - rows.start == 1
            return (
                torch.tensor([False])
                if one
                else torch.cat([finite(slice(i, i + 1)) for i in range(rows.start, rows.stop)])
            )

    good = torch.cat([finite(part) for part in chunks(n_examples(examples), CHUNK)])
    return (
        ""
        if good.all()
        else f" The losses of {what} {torch.nonzero(~good).flatten()[:5].tolist()} are not finite, or fail."
    )
