"""One plain, deterministic training loop for every model of the compendium, and what it records.

AdamW with linear warm-up and cosine decay. The same seed gives the same bits: initialisation, data order and every
update run on one thread in a fixed order. Leaving examples out comes in two forms:

- ``filter`` (random subsets): the epoch's permutation without the left-out examples, cut into full batches; a
  subset model takes fewer steps, at equal epochs;
- ``mask`` (targeted removal): the batches of the full run, in which left-out examples contribute nothing and the sum
  is still divided by the full batch size. The run stays paired with the full run, step by step, so that their
  difference is the effect of the documents and not of another data order.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from tda.artefacts import ArtefactError, atomic
from tda.lm import losses, real_tokens, trim
from tda.task import Checkpoint, Examples, Params, TrainingRun, n_examples, take, tensors


@dataclass(frozen=True)
class Recipe:
    """The ``training`` section of a testbed, as used by :func:`train`."""

    epochs: int
    batch: int
    lr: float
    warmup: float
    weight_decay: float
    beta1: float
    beta2: float
    clip: float
    checkpoints: int

    @classmethod
    def of(cls, settings: dict) -> Recipe:
        return cls(**{name: settings[name] for name in cls.__dataclass_fields__})


@dataclass(frozen=True)
class Trained:
    """Final parameters, curves, learning rates [steps], data order [epochs, N], seconds, and tokens trained on."""

    params: Params
    learning_rates: np.ndarray
    order: np.ndarray
    curves: dict[str, list[float]]
    seconds: float
    tokens: int


def data_order(n: int, epochs: int, seed: int) -> np.ndarray:
    """[epochs, N]: one permutation of all N examples an epoch, the same for every subset of them."""
    return np.stack([np.random.default_rng([seed, 13, epoch]).permutation(n) for epoch in range(epochs)])


def steps_of(order: np.ndarray, batch: int, mask: np.ndarray, how: str) -> list[tuple[np.ndarray, int]]:
    """``[(examples of the step, divisor of their summed loss), ...]``, see the module's text for ``how``."""
    if how not in ("filter", "mask"):
        raise ValueError(f"how={how!r}; 'filter' (random subsets) or 'mask' (paired removal).")
    steps = []
    for epoch in order:
        kept = epoch[mask[epoch]] if how == "filter" else epoch
        for start in range(0, len(kept), batch):
            members = kept[start : start + batch]
            steps.append((members[mask[members]], len(members)))
    return steps


def schedule(recipe: Recipe, total: int) -> np.ndarray:
    """Learning rates [total]: linear warm-up over the first ``warmup`` share of the steps, then a half cosine to 0."""
    warm = max(1, round(recipe.warmup * total))
    step = np.arange(1, total + 1)
    decay = 0.5 * (1 + np.cos(np.pi * np.clip((step - warm) / max(1, total - warm), 0, 1)))
    return recipe.lr * np.where(step <= warm, step / warm, decay)


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
) -> Trained:
    """Minimise the mean example loss from ``init`` (left untouched).

    Parameters: ``mask`` [N] bool, the examples to train on (all by default); ``how`` as in the module's text;
    ``folder``, where ``recipe.checkpoints`` checkpoints go, evenly spaced in steps and including the last; ``watch``,
    examples whose mean loss is recorded once an epoch; ``progress``, called with one line an epoch.
    Raises ``ValueError`` for an empty subset and for a loss that is no longer finite.
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
    optimizer = torch.optim.AdamW(
        params.values(), betas=(recipe.beta1, recipe.beta2), weight_decay=recipe.weight_decay, fused=True
    )
    if folder and recipe.checkpoints > len(steps):
        raise ValueError(
            f"training.checkpoints={recipe.checkpoints}, but the run has {len(steps)} steps. Lower it, or train longer."
        )
    due = {round((i + 1) * len(steps) / recipe.checkpoints) for i in range(recipe.checkpoints)} if folder else set()
    per_epoch = len(steps) // recipe.epochs
    curves: dict[str, list[float]] = {"train": [], "watch": []}
    began, running, saved = time.perf_counter(), [], 0
    for step, ((members, divisor), rate) in enumerate(zip(steps, rates, strict=True), start=1):
        optimizer.param_groups[0]["lr"] = float(rate)
        optimizer.zero_grad(set_to_none=False)
        if len(members):
            loss = loss_fn(params, trim(take(inputs, members)), "sum") / divisor
            loss.backward()
            running.append(loss.item() * divisor / len(members))
        else:  # every example of this batch was left out: the optimiser still takes its (decaying) step
            for p in params.values():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad.zero_()
        torch.nn.utils.clip_grad_norm_(params.values(), recipe.clip)
        optimizer.step()
        if step in due:
            _save(folder, step, float(rate), float(rates[saved:step].sum()), params, optimizer)
            saved = step
        if step % per_epoch == 0 and len(curves["train"]) < recipe.epochs:
            _close_epoch(curves, running, loss_fn, params, watch, recipe, progress)
            running = []
    tokens = int(sum(lengths[members].sum() for members, _ in steps))
    final = {k: v.detach() for k, v in params.items()}
    return Trained(final, rates, order, curves, time.perf_counter() - began, tokens)


def _close_epoch(curves, running, loss_fn, params, watch, recipe, progress) -> None:
    mean = float(np.mean(running)) if running else float("nan")
    if not np.isfinite(mean) and running:
        raise ValueError(
            f"the training loss is {mean} in epoch {len(curves['train']) + 1} at lr={recipe.lr}, clip={recipe.clip}. "
            f"Lower training.lr or training.clip."
        )
    curves["train"].append(mean)
    if watch is not None:
        curves["watch"].append(float(losses(loss_fn, params, watch).mean()))
    if progress:
        shown = f", held-out {curves['watch'][-1]:.3f}" if watch is not None else ""
        progress(f"epoch {len(curves['train'])}/{recipe.epochs}: loss {mean:.3f}{shown} nats a token")


def _save(folder: Path, step: int, lr: float, lr_sum: float, params: Params, optimizer) -> None:
    flat = {f"params/{k}": v.detach() for k, v in params.items()}
    for k, v in params.items():
        for moment in ("exp_avg", "exp_avg_sq"):
            flat[f"{moment}/{k}"] = optimizer.state[v][moment]
    with atomic(folder / f"step_{step:06d}.safetensors") as path:
        try:
            save_file(flat, path, metadata={"step": str(step), "lr": repr(lr), "lr_sum": repr(lr_sum)})
        except SafetensorError as error:  # a full disk, which the library does not report as an OSError
            raise OSError(str(error)) from error


def read_checkpoint(path: Path) -> tuple[Params, dict[str, Params]]:
    """``(params, {"exp_avg": ..., "exp_avg_sq": ...})`` of a checkpoint file; refuses a damaged one."""
    try:
        parts: dict[str, Params] = {}
        for name, value in load_file(path).items():
            kind, key = name.split("/", 1)
            parts.setdefault(kind, {})[key] = value
        return parts.pop("params"), parts
    except Exception as error:
        raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ArtefactError:
    return ArtefactError(f"{path} is not a readable checkpoint ({error!r}). Delete {path.parents[1]} and train again.")


def load_run(folder: Path, record: dict, retrain=None) -> TrainingRun:
    """The :class:`TrainingRun` of a folder written by :func:`train`; ``record`` is its JSON record."""
    found = []
    for path in sorted(folder.glob("step_*.safetensors")):
        try:
            with safe_open(path, "pt") as handle:
                meta = handle.metadata()
            numbers = int(meta["step"]), float(meta["lr"]), float(meta["lr_sum"])
        except Exception as error:
            raise _damaged(path, error) from None
        load = lambda path=path: read_checkpoint(path)  # noqa: E731
        found.append(Checkpoint(*numbers, load))
    if len(found) != record["recipe"]["checkpoints"]:
        raise ArtefactError(
            f"{folder} holds {len(found)} checkpoints, its record says {record['recipe']['checkpoints']}. "
            f"Delete {folder.parent} and train again."
        )
    rates = np.asarray(record["learning_rates"])
    order = data_order(record["examples"], record["recipe"]["epochs"], record["seed"])
    return TrainingRun(record["seed"], tuple(found), rates, order, record["curves"], retrain)


def training_flops(model: torch.nn.Module, tokens: int) -> float:
    """6 x parameters outside the input embedding x real tokens: matrix products of a forward and a backward pass.

    Attention scores, padding and element-wise work are not counted, so the achieved fraction is a lower bound.
    """
    embedding = model.get_input_embeddings().weight.numel()
    return 6.0 * (sum(p.numel() for p in model.parameters()) - embedding) * tokens


def matmul_rate(size: int = 1024, repeats: int = 20) -> float:
    """Multiply-add rate of this core in FLOP/s: the best of ``repeats`` square float32 products of the given size."""
    a = torch.randn(size, size)
    best = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best
