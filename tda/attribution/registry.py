"""The registry of methods: what each needs, what its scores mean, and the one door through which all are called."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from tda.lm import IGNORE, PAD_ID
from tda.task import Examples, Task, n_examples, tensors


@dataclass(frozen=True)
class Method:
    """One attribution method.

    ``needs`` names what the task must offer: ``params`` (gradients or losses of the model), ``outputs`` (``outputs_fn``
    and the ``model`` whose layers it runs), ``checkpoints`` (a training record), or an encoder (``text``, ``group``,
    ``features``). ``signed``: negative scores mean opponents. ``cost`` is ``"per query"`` (the corpus is swept for each
    query) or ``"amortised"``.
    """

    name: str
    function: Callable[..., np.ndarray]
    family: str
    paper: str
    needs: tuple[str, ...]
    signed: bool
    cost: str


class StepTooLarge(ValueError):
    """A finite step broke the model: what it would rank is noise. Tuning records such a trial as refused."""


METHODS: dict[str, Method] = {}


def method(name: str, *, family: str, paper: str, needs: tuple[str, ...] = (), signed: bool, cost: str = "amortised"):
    """Decorator that registers ``attribute(task, train, queries, *, seed=0, chunk=..., **options)`` under ``name``."""

    def register(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        if name in METHODS:
            raise ValueError(f"a method named {name!r} is registered already; choose another name.")
        METHODS[name] = Method(name, function, family, paper, needs, signed, cost)
        return function

    return register


def attribute(name: str, task: Task, train: Examples, queries: Examples, **options) -> np.ndarray:
    """Scores [n_queries, n_train], float32, of a registered method; positive = training on it lowers the query's loss.

    Raises ``ValueError`` for an unknown method or option, an empty corpus, a query without target tokens, something the
    task does not offer, and scores that are not finite.
    """
    chosen = METHODS.get(name)
    if chosen is None:
        raise ValueError(f"method {name!r} is unknown; registered are {sorted(METHODS)}.{_close(name, METHODS)}")
    accepted = [p.name for p in inspect.signature(chosen.function).parameters.values() if p.kind == p.KEYWORD_ONLY]
    for option in options:
        if option not in accepted:
            raise ValueError(
                f"method {name!r} has no option {option!r}; it accepts {accepted}.{_close(option, accepted)}"
            )
    _check_examples(train, "train")
    _check_examples(queries, "queries")
    _check_needs(chosen, task)
    scores = np.asarray(chosen.function(task, train, queries, **options), dtype=np.float32)
    expected = (n_examples(queries), n_examples(train))
    if scores.shape != expected:
        raise ValueError(
            f"method {name!r} returned shape {scores.shape}; [n_queries, n_train] = {expected} was expected."
        )
    if not np.isfinite(scores).all():
        bad = np.unique(np.argwhere(~np.isfinite(scores))[:, 0])[:5].tolist()
        raise ValueError(
            f"method {name!r} gave scores that are not finite (queries {bad}). Check the model's loss on them, and "
            f"lower the step size or raise the damping of {name!r}."
        )
    return scores


def _check_examples(examples: Examples, what: str) -> None:
    sizes = {key: len(value) for key, value in examples.items()}
    if not sizes or not all(sizes.values()):
        raise ValueError(f"{what} is empty; attribution needs at least one document and one query.")
    if len(set(sizes.values())) > 1:
        raise ValueError(f"{what}: its columns differ in length ({sizes}); the first axis of all is the example axis.")
    labels = tensors(examples).get("labels")
    if labels is not None and labels.dim() == 2:
        padding = torch.nonzero(((labels[:, 1:] == PAD_ID) | (labels[:, 1:] == IGNORE)).all(1)).flatten().tolist()
        empty = torch.nonzero((labels[:, 1:] != IGNORE).sum(1) == 0).flatten().tolist()
        if empty:
            raise ValueError(
                f"{what}: rows {empty[:5]} have no target tokens; give each at least one label other than {IGNORE}."
            )
        if padding:
            raise ValueError(f"{what}: rows {padding[:5]} are nothing but padding (id {PAD_ID}); give them text.")


def _check_needs(chosen: Method, task: Task) -> None:
    for need in chosen.needs:
        present = {
            "params": bool(task.params),
            "outputs": task.outputs_fn is not None and task.model is not None,
            "checkpoints": task.run is not None and bool(task.run.checkpoints),
        }.get(need, need in task.encode)
        if not present:
            raise ValueError(
                f"method {chosen.name!r} needs {need!r}, which the task {task.name!r} does not offer. Give the task "
                f"that field, or choose a method that does without it."
            )


def _close(word: str, among) -> str:
    match = difflib.get_close_matches(word, list(among), n=1)
    return f" Did you mean {match[0]!r}?" if match else ""
