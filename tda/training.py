"""One plain, deterministic training loop for every model of the compendium, and what it records.

AdamW, or SGD with heavy-ball momentum and (coupled) weight decay, as in ``torch.optim``. The same seed gives the same
bits: initialisation, data order and every update run on one thread in a fixed order. Which examples a step sees, and
what is left out, is said in :mod:`tda.recipe`. A checkpoint is one file that says what it belongs to and carries a
checksum.
"""

from __future__ import annotations

import functools
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tda.artefacts import ArtefactError, atomic, check_record, digest, reading, require, seal
from tda.lm import losses
from tda.recipe import Recipe, data_order, schedule, steps_of
from tda.sequences import real_tokens, trim
from tda.task import Checkpoint, Examples, Params, TrainingRun, n_examples, take, tensors


@dataclass(frozen=True)
class Trained:
    """The result: learning rates [steps], data order [epochs, N]; tokens trained on (of a classifier: examples)."""

    params: Params
    learning_rates: np.ndarray
    order: np.ndarray
    curves: dict[str, list[float]]
    seconds: float
    tokens: int


def train(
    loss_fn: Callable[..., Tensor],
    init: Params,
    data: Examples,
    recipe: Recipe,
    seed: int,
    mask: np.ndarray | None = None,
    how: str = "filter",
    folder: Path | None = None,
    watch: Examples | None = None,
    progress: Callable[[str], None] | None = None,
    about: Mapping[str, str] | None = None,
    keep: Callable[[int, float, float, Params, dict[str, Params]], None] | None = None,
) -> Trained:
    """Minimise the mean example loss from ``init`` (left untouched).

    ``mask`` [N] bool: the examples to train on (all by default), by ``how`` as in :mod:`tda.recipe`; ``folder``: where
    the initial parameters (step 0) and ``recipe.checkpoints`` checkpoints go, evenly spaced in steps and including the
    last, each with what it belongs to (``about``); ``watch``: examples whose mean loss is recorded once an epoch;
    ``progress``: called with one line an epoch; ``keep``: called where a checkpoint is due, as :func:`save` is. Where
    the recipe averages parameters, the average is what is watched, kept and returned. A loss that draws anew in
    every epoch has ``loss_fn.redrawn(examples, seed, epoch)``, all examples as the epoch shows them. Raises
    ``ValueError`` for an empty subset and for a loss that is no longer finite.
    """
    n = n_examples(data)
    mask = np.ones(n, bool) if mask is None else np.asarray(mask)
    if mask.shape != (n,) or mask.dtype != bool or not mask.any():
        raise ValueError(f"mask must be bool of shape ({n},) with at least one example; got {mask.dtype} {mask.shape}.")
    order = data_order(n, recipe.epochs, seed)
    steps = steps_of(order, recipe.batch, mask, how)
    rates = schedule(recipe, len(steps))
    inputs = tensors(data)
    lengths = real_tokens(data).sum(1).numpy()
    params = {k: v.detach().clone().requires_grad_() for k, v in init.items()}
    optimizer = recipe.make(params.values())
    model = {k: v.detach().clone() for k, v in params.items()} if recipe.averaged else params
    if folder:
        keep = functools.partial(save, folder, {**(about or {}), "seed": seed})
    if keep and recipe.checkpoints > len(steps):
        raise ValueError(
            f"training.checkpoints={recipe.checkpoints}, but the run has {len(steps)} steps. Lower it, or train longer."
        )
    due = {round((i + 1) * len(steps) / recipe.checkpoints) for i in range(recipe.checkpoints)} if keep else set()
    if keep:
        keep(0, 0.0, 0.0, model, {})
    per_epoch = len(steps) // recipe.epochs
    curves: dict[str, list[float]] = {"train": [], "watch": []}
    began, running, saved, shown = time.perf_counter(), [], 0, inputs
    redrawn = getattr(loss_fn, "redrawn", None)
    for step, ((members, divisor), rate) in enumerate(zip(steps, rates, strict=True), start=1):
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad(set_to_none=False)
        if redrawn and (step - 1) % per_epoch == 0:
            shown = redrawn(inputs, seed, (step - 1) // per_epoch)
        if len(members):
            loss = loss_fn(params, trim(take(shown, members)), "sum") / divisor
            loss.backward()
            running.append(loss.item() * divisor / len(members))
        else:  # every example of this batch was left out: the optimiser still takes its (decaying) step
            for p in params.values():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad.zero_()
        if recipe.clip is not None:
            torch.nn.utils.clip_grad_norm_(params.values(), recipe.clip)
        optimizer.step()
        if recipe.averaged:  # the first steps count for less, so that the initial parameters are forgotten
            weight = 1 - min(recipe.averaged, (1 + step) / (10 + step))
            torch._foreach_lerp_(list(model.values()), [v.detach() for v in params.values()], weight)
        if step in due:
            keep(step, float(rate), float(rates[saved:step].sum()), model, _state(optimizer, params))
            saved = step
        if step % per_epoch == 0 and len(curves["train"]) < recipe.epochs:
            _close_epoch(curves, running, loss_fn, model, watch, recipe, progress)
            running = []
    tokens = int(sum(lengths[members].sum() for members, _ in steps))
    final = {k: v.detach() for k, v in model.items()}
    return Trained(final, rates, order, curves, time.perf_counter() - began, tokens)


def _close_epoch(curves, running, loss_fn, params, watch, recipe, progress) -> None:
    mean = float(np.mean(running)) if running else float("nan")
    if not np.isfinite(mean) and running:
        raise ValueError(
            f"the training loss is {mean} in epoch {len(curves['train']) + 1} at lr={recipe.lr}, clip={recipe.clip}. "
            f"Lower training.lr{'' if recipe.clip is None else ' or training.clip'}."
        )
    curves["train"].append(mean)
    if watch is not None:
        curves["watch"].append(float(losses(loss_fn, params, watch).mean()))
    if progress:
        shown = f", held-out {curves['watch'][-1]:.3f}" if watch is not None else ""
        progress(f"epoch {len(curves['train'])}/{recipe.epochs}: loss {mean:.3f}{shown}")


def _state(optimizer: torch.optim.Optimizer, params: Params) -> dict[str, Params]:
    """The optimiser's moments (``exp_avg`` and ``exp_avg_sq``, or ``momentum_buffer``), each like the parameters."""
    first = optimizer.state[next(iter(params.values()))]
    kept = [name for name in ("exp_avg", "exp_avg_sq", "momentum_buffer") if first.get(name) is not None]
    return {name: {k: optimizer.state[v][name] for k, v in params.items()} for name in kept}


def at_moments(
    loss_fn: Callable[..., Tensor], init: Params, data: Examples, recipe: Recipe, seed: int, mask: np.ndarray
) -> list[Params]:
    """:func:`train` on a subset (``filter``), and the parameters at its ``recipe.checkpoints`` moments."""
    kept: list[Params] = []

    def keep(step: int, lr: float, lr_sum: float, params: Params, state: dict[str, Params]) -> None:
        if step:
            kept.append({k: v.detach().clone() for k, v in params.items()})

    train(loss_fn, init, data, recipe, seed, mask, "filter", keep=keep)
    return kept


def train_recorded(
    loss_fn: Callable[..., Tensor], init: Params, data: Examples, recipe: Recipe, seed: int
) -> tuple[Params, TrainingRun]:
    """:func:`train` on all examples, with its record in memory: ``(final parameters, run)``."""
    kept: list[Checkpoint] = []

    def keep(step: int, lr: float, lr_sum: float, params: Params, state: dict[str, Params]) -> None:
        copied = [{k: v.detach().clone() for k, v in part.items()} for part in (params, *state.values())]
        loaded = copied[0], dict(zip(state, copied[1:], strict=True))
        kept.append(Checkpoint(step, lr, lr_sum, lambda: loaded))

    done = train(loss_fn, init, data, recipe, seed, keep=keep)
    steps = tuple(steps_of(done.order, recipe.batch, np.ones(n_examples(data), bool), "filter"))

    def retrain(mask: np.ndarray, seed: int) -> Params:
        return train(loss_fn, init, data, recipe, seed, mask, "mask").params

    def retrain_many(masks: np.ndarray, seeds: Sequence[int], moments: int) -> Iterator[list[Params]]:
        several = replace(recipe, checkpoints=moments)
        return (at_moments(loss_fn, init, data, several, s, mask) for mask, s in zip(masks, seeds, strict=True))

    again, (first, *later) = (retrain, retrain_many), kept
    record = done.learning_rates, done.order, done.curves
    return done.params, TrainingRun(seed, tuple(later), *record, *again, recipe, first, steps)


def save(
    folder: Path, about: Mapping, step: int, lr: float, lr_sum: float, params: Params, state: dict[str, Params]
) -> None:
    parts = {"params": params, **state}
    flat = {f"{name}/{k}": v.detach() for name, part in parts.items() for k, v in part.items()}
    record = {**about, "kind": "checkpoint", "step": step, "lr": lr, "lr_sum": lr_sum, "sha256": _checksum(flat)}
    with atomic(folder / f"step_{step:06d}.safetensors") as path:
        try:
            save_file(flat, path, metadata={"record": json.dumps(seal(record))})
        except SafetensorError as error:  # a full disk, which the library does not report as an OSError
            raise OSError(str(error)) from error


def _checksum(flat: Mapping[str, Tensor]) -> str:
    values = {f"{name} {v.dtype} {tuple(v.shape)}": v.cpu().contiguous().reshape(-1) for name, v in flat.items()}
    return digest({name: v.view(torch.uint8).numpy() for name, v in values.items()})


def _open(path: Path, expect: Mapping, tensors: bool) -> tuple[dict, dict[str, Tensor]]:
    """``(record, tensors)`` of a checkpoint, checked; without ``tensors`` their checksum waits until they are read."""
    cure, flat = f"delete {path.parents[1]} and train again", {}
    with reading(path, cure):
        expect = {**expect, "step": int(path.stem.removeprefix("step_"))}
        with safe_open(path, "pt") as handle:
            record = json.loads(handle.metadata()["record"])
            if tensors:
                flat = {name: handle.get_tensor(name) for name in handle.keys()}
    check_record(path, record, "checkpoint", expect, cure)
    if tensors:
        require(_checksum(flat) == record["sha256"], path, "its tensors differ from their checksum", cure)
    return record, flat


def read_checkpoint(path: Path, expect: Mapping | None = None) -> tuple[Params, dict[str, Params]]:
    """``(params, optimiser state)`` of a checkpoint file. Refuses a damaged one, one whose step is not that of its
    name, and one whose record does not say ``expect`` (``seed``, ``sha256`` and the ``about`` of the training).
    """
    parts: dict[str, Params] = {"params": {}}
    for name, value in _open(path, expect or {}, tensors=True)[1].items():
        kind, key = name.split("/", 1)
        parts.setdefault(kind, {})[key] = value
    return parts.pop("params"), parts


def checkpoint_checksums(folder: Path) -> dict[str, str]:
    """``step -> sha256`` of the tensors of every checkpoint of a run, to be kept in its record."""
    records = [_open(path, {}, tensors=False)[0] for path in sorted(folder.glob("step_*.safetensors"))]
    return {str(record["step"]): record["sha256"] for record in records}


def load_run(
    folder: Path, record: dict, retrain=None, retrain_many=None, about: Mapping[str, str] | None = None
) -> TrainingRun:
    """The run of a folder written by :func:`train`; ``record`` is its JSON record, with the checksums of its
    checkpoints, ``about`` what the training was given. Refuses checkpoints of another run, seed or step.
    """
    found = []
    for path in sorted(folder.glob("step_*.safetensors")):
        known = record["checkpoints"].get(path.stem.removeprefix("step_").lstrip("0") or "0")
        expect = {**(about or {}), "seed": record["seed"], "sha256": known}
        meta = _open(path, expect, tensors=False)[0]
        load = lambda path=path, expect=expect: read_checkpoint(path, expect)  # noqa: E731
        found.append(Checkpoint(meta["step"], meta["lr"], meta["lr_sum"], load))
    recipe = Recipe.of(record["recipe"])
    initial, later = ([c for c in found if (c.step == 0) == first] for first in (True, False))
    if len(initial) != 1 or len(later) != recipe.checkpoints:
        steps = {int(step) for step in record["checkpoints"]} - {c.step for c in found}
        lost = [f"step_{step:06d}.safetensors" for step in sorted(steps)]
        raise ArtefactError(
            f"{folder} holds {len(later)} checkpoints and {len(initial)} initial models, its record says "
            f"{recipe.checkpoints} and 1 (lost: {', '.join(lost)}); delete {folder.parent} and train again"
        )
    rates, order = np.asarray(record["learning_rates"]), data_order(record["examples"], recipe.epochs, record["seed"])
    steps = tuple(steps_of(order, recipe.batch, np.ones(record["examples"], bool), "filter"))
    again, start = (retrain, retrain_many), initial[0]
    return TrainingRun(record["seed"], tuple(later), rates, order, record["curves"], *again, recipe, start, steps)
