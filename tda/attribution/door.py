"""What is checked before any method runs: what the user gives is what is scored, or it is refused by name.

Everything here is cheap: tensors are looked at, and the loss is asked about a handful of examples. Losses of the whole
corpus are computed only to say *which* document broke a method that failed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tda.attribution.gradients import CHUNK, batch_of
from tda.lm import IGNORE, real_tokens
from tda.task import Examples, Task, chunks, n_examples, take, tensors

TOLERANCE = 1e-3  # of a loss of size 1 or more, between two ways of computing it: far above rounding in float32
PRECISE = (torch.float32, torch.float64)


def admit(examples: Any, what: str) -> Examples:
    """``examples`` as the methods take them: a dict of tensors and lists, arrays turned into tensors.

    Raises ``ValueError`` for another container, columns without an example axis or of different lengths, no examples,
    numbers that are not finite, and rows without a target.
    """
    if not isinstance(examples, Mapping):
        raise ValueError(
            f"{what} is a {type(examples).__name__}; examples are a dict of tensors and lists, the example axis first. "
            f"Of a datasets.Dataset take dataset.with_format('torch')[:]."
        )
    found = {column: _column(value, f"{what}: column {column!r}") for column, value in examples.items()}
    sizes = {column: len(value) for column, value in found.items()}
    if not sizes or not all(sizes.values()):
        raise ValueError(f"{what} is empty; attribution needs at least one document and one query.")
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{what}: its columns differ in length ({sizes}); the first axis of all is the example axis.")
    for column, value in tensors(found).items():
        if value.is_floating_point() and not value.isfinite().all():
            rows = _rows(~value.flatten(1).isfinite().all(1) if value.dim() > 1 else ~value.isfinite())
            raise ValueError(f"{what}: column {column!r} is not finite in rows {rows}. Repair or remove them.")
    labels = tensors(found).get("labels")
    if labels is not None and not labels.is_floating_point():
        empty = (labels == IGNORE).reshape(len(labels), -1).all(1)
        if empty.any():
            raise ValueError(
                f"{what}: rows {_rows(empty)} have no target tokens; give each at least one label other than {IGNORE}."
            )
    return found


def _column(value: Any, where: str) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.ndim:
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return value.tolist()
    if isinstance(value, Tensor) and value.dim() and value.layout == torch.strided:
        if value.device.type != "cpu":
            raise ValueError(f"{where} lies on {value.device}; only the CPU is offered. Move it there with .cpu().")
        return value
    if isinstance(value, (list, tuple)):
        return list(value)
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    raise ValueError(
        f"{where} is a {type(value).__name__}{shape}; give a dense tensor or a list with the example axis first."
    )


def _rows(bad: Tensor) -> list[int]:
    return torch.nonzero(bad).flatten()[:5].tolist()


def check_model(task: Task, layers: bool) -> None:
    """Refuse parameters and a model that no method can work with; ``layers``: the method runs the model's modules.

    Half precision, another device, parameters that the model does not have, gradient checkpointing.
    """
    for name, value in task.params.items():
        if value.dtype not in PRECISE:
            raise ValueError(
                f"task {task.name!r}: parameter {name!r} is {str(value.dtype)[6:]}; scores are differences of small "
                f"numbers and need float32 parameters. Call model.float() before making the task."
            )
        if value.device.type != "cpu":
            raise ValueError(
                f"task {task.name!r}: parameter {name!r} lies on {value.device}; only the CPU is offered. Call "
                f"model.cpu() before making the task."
            )
        if not value.isfinite().all():
            raise ValueError(f"task {task.name!r}: parameter {name!r} is not finite. The training of it diverged.")
    if task.model is None:
        return
    if any(getattr(module, "gradient_checkpointing", False) for module in task.model.modules()):
        raise ValueError(
            f"task {task.name!r}: gradient checkpointing is on, which per-example gradients cannot pass. Call "
            f"model.gradient_checkpointing_disable()."
        )
    shapes = {name: tuple(p.shape) for name, p in task.model.named_parameters(remove_duplicate=False)}
    foreign = [name for name, p in task.params.items() if shapes.get(name) != tuple(p.shape)]
    if layers and foreign:
        raise ValueError(
            f"task {task.name!r}: its model has no parameters {foreign[:3]} of these shapes, so its layers cannot be "
            f"told which they are. Give task.params the names of model.named_parameters()."
        )


@contextmanager
def evaluating(task: Task) -> Iterator[None]:
    """The task's model in evaluation mode, whatever it was left in (dropout off, batch norm fixed); then as it was."""
    training = [m for m in task.model.modules() if m.training] if task.model is not None else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


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
    total = task.loss_fn(task.params, tensors(few), "sum").detach().reshape(1)
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
    lengths = real_tokens(examples).sum(1) if "labels" in examples else torch.zeros(n_examples(examples))
    shortest = int(lengths[1:].argmin()) + 1 if len(lengths) > 1 else 0
    return np.unique([0, shortest])


def _losses(task: Task, batch: Examples, what: str) -> Tensor:
    with torch.no_grad(), _named(f"{what}: the loss of task {task.name!r}", batch):
        return task.loss_fn(task.params, tensors(batch), "example").detach()


@contextmanager
def _named(who: str, batch: Examples) -> Iterator[None]:
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
        with torch.no_grad(), _named(f"{what}: outputs_fn of task {task.name!r}", batch):
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
    """Which examples have a loss that is not finite, as the end of a message; empty if none has."""
    bad = [
        part.start + i
        for part in chunks(n_examples(examples), CHUNK)
        for i in torch.nonzero(~_losses(task, take(examples, part), what).isfinite()).flatten().tolist()
    ]
    return f" The losses of {what} {bad[:5]} are not finite." if bad else ""


@contextmanager
def entered(task: Task, needs: Collection[str], **given: Any) -> Iterator[list[Examples]]:
    """The ``given`` examples (``train=..., queries=...``) as methods take them, and the model in evaluation mode, after
    all checks of this module. ``needs``: what the method looks at, as in :class:`tda.attribution.registry.Method`.

    A ``ValueError`` from inside is told which examples have losses that are not finite, if any has.
    """
    found = {what: admit(examples, what) for what, examples in given.items()}
    with evaluating(task):
        for what, examples in found.items() if "params" in needs else ():
            check_model(task, "outputs" in needs)
            probe(task, examples, what)
        for what, examples in found.items():
            for need in {"text", "group", "features"} & set(needs):
                with _named(f"{what}: encode[{need!r}] of task {task.name!r}", examples):
                    task.encode[need](take(examples, slice(0, 1)))
        try:
            yield list(found.values())
        except NotImplementedError as error:
            if "forward AD" not in str(error):
                raise
            raise ValueError(
                f"task {task.name!r}: its fused attention has no forward-mode derivative, which this needs. Load the "
                f"model with attn_implementation='eager'."
            ) from error
        except ValueError as error:
            names = "".join(broken(task, x, what) for what, x in found.items()) if "params" in needs else ""
            if not names:
                raise
            raise type(error)(f"{error}{names}") from error
