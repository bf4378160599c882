"""What may be known of a model: the ladder of "Exploring TDA under Limited Access Constraints" (Zhang et al. 2025).

The training data are known at every level. Of the target f, with configuration phi (architecture and recipe) and a
query interface Q, the paper grants

====  ===========================  =====================================================================
S0    f, phi, Q                    everything
S1    architecture, Q              not the recipe
S2    architecture                 a technical report without an interface
S3    Q                            a black box
S4    nothing
S5    phi                          training the target is too dear: a limit of *compute*, not below S4
====  ===========================  =====================================================================

:func:`restrict` takes the other fields off a :class:`tda.task.Task`, so that a method that needs one is refused by the
registry. It keeps honest code honest; what a closure of Python holds can be dug out by whoever wants to.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tda.task import Examples, Task, TrainingRun, chunks, n_examples, take, tensors

LEVELS: dict[str, tuple[str, ...]] = {  # and what is known there, beside the data
    "S0": ("weights", "architecture", "recipe", "queries"),
    "S1": ("architecture", "queries"),
    "S2": ("architecture",),
    "S3": ("queries",),
    "S4": (),
    "S5": ("architecture", "recipe"),
}
DATA = ("text", "group", "pixels")  # encoders that look at the examples alone
CHUNK = 128  # examples asked together


def restrict(task: Task, level: str) -> Task:
    """The task as it is seen at ``level`` of :data:`LEVELS`; its name says so.

    - weights (S0): all fields;
    - architecture: ``model`` without its numbers, on torch's ``meta`` device;
    - recipe: ``run`` with its recipe and no checkpoints;
    - queries: ``encode["outputs"](examples)`` [n, T, C] float32, the log-probabilities of every class (of a squared
      error: the outputs), without gradients;
    - always: the encoders of the data themselves (``text``, ``group``, ``pixels``).

    Raises ``ValueError`` for a level that does not exist and for a task that is restricted already.
    """
    if level not in LEVELS:
        raise ValueError(f"level {level!r} of access does not exist; the levels are {list(LEVELS)}.")
    if not task.params:
        raise ValueError(f"the task {task.name!r} is restricted already; restrict the task that has everything.")
    known = LEVELS[level]
    asked = {"outputs": outputs_of(task)} if "queries" in known and task.outputs_fn is not None else {}
    if "weights" in known:
        return replace(task, encode=task.encode | asked)
    recipe = task.run.recipe if "recipe" in known and task.run is not None else None
    nothing = np.zeros(0)
    return replace(
        task,
        name=f"{task.name} at {level}",
        loss_fn=_hidden(task.name, level),
        params={},
        model=copy.deepcopy(task.model).to("meta") if "architecture" in known and task.model is not None else None,
        run=recipe and TrainingRun(0, (), nothing, nothing, {}, recipe=recipe),
        encode={name: encoder for name, encoder in task.encode.items() if name in DATA} | asked,
        outputs_fn=None,
    )


def outputs_of(task: Task) -> Callable[[Examples], np.ndarray]:
    """The query interface of a task: ``f(examples)`` [n, T, C] as in :func:`restrict`."""

    def ask(examples: Examples) -> np.ndarray:
        parts = []
        with torch.no_grad():
            for part in chunks(n_examples(examples), CHUNK):
                outputs = task.outputs_fn(task.params, tensors(take(examples, part)))[0]
                parts.append(outputs.log_softmax(-1) if task.output_loss == "cross_entropy" else outputs)
        return torch.cat(parts).numpy().astype(np.float32)

    return ask


def need(task: Task, part: str, who: str) -> Any:
    """The architecture (a module), recipe or queries (a function) of a restricted task; ``ValueError`` with the levels
    that have it where this one does not. ``who`` needs it.
    """
    recipe = task.run.recipe if task.run is not None else None
    found = {"architecture": task.model, "recipe": recipe, "queries": task.encode.get("outputs")}[part]
    if found is None:
        levels = [level for level, known in LEVELS.items() if part in known]
        raise ValueError(f"{who} needs the {part}, which the task {task.name!r} does not offer; levels {levels} do.")
    return found


def check_tokens(target: Mapping[str, int], proxy: Mapping[str, int], level: str, own_tokens: bool = False) -> None:
    """Refuse a proxy whose vocabulary (token -> number) differs from the target's.

    Distilling needs the target's tokens, and a known architecture has them. Only at S4, where nothing is known, may a
    proxy cut texts its own way, and says so by ``own_tokens``: its losses are then means over other tokens.
    """
    if dict(target) == dict(proxy) or (own_tokens and level == "S4"):
        return
    odd = sorted(set(target.items()) ^ set(proxy.items()))[0][0]
    cure = "declare it by own_tokens=True" if level == "S4" else "only at S4 may a proxy have its own (own_tokens=True)"
    raise ValueError(
        f"the proxy's tokenizer differs from the target's ({len(proxy)} and {len(target)} tokens; {odd!r}, for one). "
        f"Use the target's at {level}; {cure}."
    )


def _hidden(name: str, level: str) -> Callable[..., Any]:
    def loss_fn(*_: Any, **__: Any) -> None:
        raise ValueError(f"the loss of {name!r} needs its weights, which are not known at {level}; train a proxy.")

    return loss_fn
