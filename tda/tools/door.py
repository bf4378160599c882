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

from tda.output_loss import IGNORE
from tda.task import Examples, Task, take, tensors
from tda.tools.probe import broken, named_errors, probe

PRECISE = (torch.float32, torch.float64)
_inside: list[Task] = []  # the tasks whose methods are running


@contextmanager
def entered(task: Task, needs: Collection[str], **given: Any) -> Iterator[list[Examples]]:
    """The ``given`` examples (``train=..., queries=...``) as methods take them, and the model in evaluation mode, after
    all checks of this module. ``needs``: what the method looks at, as in :class:`tda.attribution.registry.Method`.

    An error from inside is told which examples have no finite loss, if there are any.
    """
    if not isinstance(task, Task):
        raise ValueError(f"the task is a {type(task).__name__}; give a tda.task.Task.")
    admitted = {what: admit(examples, what) for what, examples in given.items()}
    if _inside:  # one method calls another: the outer call has checked
        yield list(admitted.values())
        return
    in_training = [module for module in task.model.modules() if module.training] if task.model is not None else []
    _inside.append(task)
    try:
        for module in in_training:
            module.training = False
        with torch.inference_mode(False), torch.enable_grad():
            yield from _asked(task, needs, admitted)
    finally:
        _inside.pop()
        for module in in_training:
            module.training = True


def _asked(task: Task, needs: Collection[str], admitted: dict[str, Examples]) -> Iterator[list[Examples]]:
    if "params" in needs:
        _check_model(task, "outputs" in needs)
        for what, examples in admitted.items():
            probe(task, examples, what)
    for what, examples in admitted.items():
        for need in {"text", "group", "features"} & set(needs):
            with named_errors(f"{what}: encode[{need!r}] of task {task.name!r}", examples):
                task.encode[need](take(examples, slice(0, 1)))
    try:
        yield list(admitted.values())
    except (ValueError, RuntimeError, IndexError, KeyError, TypeError) as error:
        if "forward AD" in str(error):  # a NotImplementedError, which is a RuntimeError
            raise ValueError(
                f"task {task.name!r}: its fused attention has no forward-mode derivative, which this needs. Load "
                f"the model with attn_implementation='eager'."
            ) from error
        names = "".join(broken(task, x, what) for what, x in admitted.items()) if "params" in needs else ""
        if not names:
            raise
        kind = type(error) if isinstance(error, ValueError) else ValueError
        raise kind(f"{error}{names}") from error


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
    columns = {column: _column(value, f"{what}: column {column!r}") for column, value in examples.items()}
    sizes = {column: len(value) for column, value in columns.items()}
    if not sizes or not all(sizes.values()):
        raise ValueError(f"{what} is empty; attribution needs at least one document and one query.")
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{what}: its columns differ in length ({sizes}); the first axis of all is the example axis.")
    for column, value in tensors(columns).items():
        if value.is_floating_point() and not value.isfinite().all():
            rows = _rows(~value.flatten(1).isfinite().all(1) if value.dim() > 1 else ~value.isfinite())
            raise ValueError(f"{what}: column {column!r} is not finite in rows {rows}. Repair or remove them.")
    labels = tensors(columns).get("labels")
    if labels is not None and not labels.is_floating_point():
        empty = (labels == IGNORE).reshape(len(labels), -1).all(1)
        if empty.any():
            raise ValueError(
                f"{what}: rows {_rows(empty)} have no target tokens; give each at least one label other than {IGNORE}."
            )
    return columns


def _column(value: Any, where: str) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.ndim:
        return torch.from_numpy(np.ascontiguousarray(value))
    if isinstance(value, np.ndarray) and value.ndim == 1:
        return value.tolist()
    if isinstance(value, Tensor) and value.dim() and value.layout == torch.strided:
        if value.device.type != "cpu":
            raise ValueError(f"{where} lies on {value.device}; only the CPU is offered. Move it there with .cpu().")
        return value.detach()
    if isinstance(value, (list, tuple)):
        return list(value)
    shape = f" of shape {tuple(value.shape)}" if hasattr(value, "shape") else ""
    raise ValueError(
        f"{where} is a {type(value).__name__}{shape}; give a dense tensor or a list with the example axis first."
    )


def _rows(bad: Tensor) -> list[int]:
    return torch.nonzero(bad).flatten()[:5].tolist()


def _check_model(task: Task, layers: bool) -> None:
    """Refuse parameters and a model that no method can work with; ``layers``: the method runs the model's modules."""
    for name, value in task.params.items():
        problem = ""
        if not isinstance(value, Tensor):
            problem = f"is a {type(value).__name__}; give a tensor."
        elif value.dtype not in PRECISE:
            problem = (
                f"is {str(value.dtype)[6:]}; scores are differences of small numbers and need float32 parameters. Call "
                f"model.float() before making the task."
            )
        elif value.device.type != "cpu":
            problem = f"lies on {value.device}; only the CPU is offered. Call model.cpu() before making the task."
        elif not value.isfinite().all():
            problem = "is not finite. The training of it diverged."
        if problem:
            raise ValueError(f"task {task.name!r}: parameter {name!r} {problem}")
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
