"""The registry of methods: what each needs, what its scores mean, and the one door through which all are called."""

from __future__ import annotations

import difflib
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, is_dataclass

import numpy as np

from tda.task import Examples, Task, n_examples
from tda.tools import door, options


@dataclass(frozen=True)
class Method:
    """One attribution method, and what each of its options may be (``rules``).

    ``needs``: what the task must offer, ``params``, ``outputs`` (``outputs_fn`` and ``model``), ``checkpoints``,
    ``retrain`` (the run's ``retrain`` or ``retrain_many``) or an encoder (``text``, ``group``, ``features``).
    ``signed``: negative scores mean opponents. ``cost``: ``"per query"`` (a sweep of the corpus for each) or
    ``"amortised"``. ``group``: ``f(scores [Q, N], subsets [M, N]) -> [Q, M]`` of a method whose effect of a subset is
    not the sum of its scores.
    """

    name: str
    function: Callable[..., np.ndarray]
    family: str
    paper: str
    needs: tuple[str, ...]
    signed: bool
    cost: str
    rules: Mapping[str, options.Rule]
    group: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None


class StepTooLarge(ValueError):
    """A finite step broke the model: what it would rank is noise. Tuning records such a trial as refused."""


METHODS: dict[str, Method] = {}
BY_GRADIENTS = ("gradient", "curvature", "unlearning", "unrolling")  # families in which a row of zeros says nothing


def method(
    name: str,
    *,
    family: str,
    paper: str,
    needs: tuple[str, ...] = (),
    signed: bool,
    cost: str = "amortised",
    group: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None,
):
    """Decorator that registers ``attribute(task, train, queries, *, seed=0, chunk=..., **options)`` under ``name``.

    The function may take a dataclass instead (:mod:`tda.tools.options`), ``attribute(task, train, queries, options:
    Options)``. Callers give keywords in either case, and see the options in the signature and the help.
    """

    def register(function: Callable[..., np.ndarray]) -> Callable[..., np.ndarray]:
        if name in METHODS:
            raise ValueError(f"a method named {name!r} is registered already; choose another name.")
        kind = typing.get_type_hints(function).get("options")
        kind = kind if is_dataclass(kind) else None
        allowed = options.rules(kind or function)

        @functools.wraps(function)
        def checked(task: Task, train: Examples, queries: Examples, **given) -> np.ndarray:
            options.check(name, allowed, given)
            _check_needs(METHODS[name], task)
            given = {"options": kind(**given)} if kind else given
            with door.entered(task, needs, train=train, queries=queries) as (train, queries):
                scores = function(task, train, queries, **given)
                _check_scores(METHODS[name], np.asarray(scores, np.float32), (n_examples(queries), n_examples(train)))
                return scores

        if kind:
            signature = inspect.signature(function)
            data = [p for p in signature.parameters.values() if p.name != "options"]
            checked.__signature__ = signature.replace(parameters=[*data, *options.parameters(kind)])
            checked.__doc__ = f"{inspect.getdoc(function)}\n\nOptions:\n\n{options.described(kind)}"
        METHODS[name] = Method(name, checked, family, paper, needs, signed, cost, allowed, group)
        return checked

    return register


def attribute(name: str, task: Task, train: Examples, queries: Examples, **given) -> np.ndarray:
    """Scores [n_queries, n_train], float32, of a registered method; positive = training on it lowers the query's loss.

    ``given``: the method's options. Raises ``ValueError`` for an unknown method or option, a value that is not allowed,
    something the task does not offer, what :mod:`tda.tools.door` refuses, and scores that are not finite or all zero.
    """
    return np.asarray(named(name).function(task, train, queries, **given), dtype=np.float32)


def predict(name: str, task: Task, train: Examples, queries: Examples, subsets: np.ndarray, **given) -> np.ndarray:
    """Effects [Q, M] of training on ``subsets`` bool [M, N], larger where the query's loss is lowered more.

    By the method's own ``group``, else by the sum of its scores. Raises ``ValueError`` as :func:`attribute`, and for
    subsets that are no mask of the documents.
    """
    subsets, group = np.asarray(subsets), named(name).group
    if subsets.ndim != 2 or subsets.dtype != bool:
        raise ValueError(f"predict: subsets are {subsets.dtype} {subsets.shape}; give a boolean mask [M, N].")
    scores = attribute(name, task, train, queries, **given)
    if subsets.shape[1] != scores.shape[1]:
        raise ValueError(f"predict: subsets of {subsets.shape[1]} documents, but there are {scores.shape[1]}.")
    return group(scores, subsets) if group else scores.astype(np.float64) @ subsets.T


def named(name: str) -> Method:
    """The registered method of this name; ``ValueError`` with the names there are for any other."""
    if name not in METHODS:
        near = difflib.get_close_matches(str(name), list(METHODS), n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"method {name!r} is unknown; registered are {sorted(METHODS)}.{hint}")
    return METHODS[name]


def _check_scores(chosen: Method, scores: np.ndarray, expected: tuple[int, int]) -> None:
    if scores.shape != expected:
        raise ValueError(
            f"method {chosen.name!r} returned shape {scores.shape}; [n_queries, n_train] = {expected} was expected."
        )
    bad = ~np.isfinite(scores)
    if bad.any():
        everywhere = np.flatnonzero(bad.all(0))[:5].tolist()
        where = f"documents {everywhere}" if everywhere else f"queries {np.flatnonzero(bad.any(1))[:5].tolist()}"
        knobs = [option for option in ("step", "damping") if option in chosen.rules]
        raise ValueError(
            f"method {chosen.name!r} gave scores that are not finite ({where}). Check the model's gradients on them"
            f"{f', or change {knobs}' if knobs else ''}."
        )
    if chosen.family != "baseline" and not scores.any():
        why = "The gradients vanish, or an option leaves nothing (a large damping or penalty, no weight)."
        raise ValueError(
            f"method {chosen.name!r} gave every document the score 0 for every query: nothing is ranked. "
            f"{'The texts have no word in common.' if 'text' in chosen.needs else why}"
        )
    still = np.flatnonzero(~scores.any(1))[:5].tolist()
    if still and chosen.family in BY_GRADIENTS:
        raise ValueError(
            f"method {chosen.name!r} gave every document the score 0 for queries {still}: their gradients vanish. "
            f"Leave them out, or attribute an earlier checkpoint."
        )


def _check_needs(chosen: Method, task: Task) -> None:
    for need in chosen.needs:
        present = {
            "params": bool(task.params),
            "outputs": task.outputs_fn is not None and task.model is not None,
            "checkpoints": task.run is not None and bool(task.run.checkpoints),
            "retrain": task.run is not None and bool(task.run.retrain or task.run.retrain_many),
        }.get(need, need in task.encode)
        if not present:
            raise ValueError(
                f"method {chosen.name!r} needs {need!r}, which the task {task.name!r} does not offer. Give the task "
                f"that field, or choose a method that does without it."
            )
