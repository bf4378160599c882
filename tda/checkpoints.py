"""Checkpoints on disk: one file each that says what it belongs to and carries a checksum, and the run they make up."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tda.artefacts import ArtefactError, atomic, check_record, digest, reading, require, seal
from tda.recipe import Recipe, data_order, steps_of
from tda.task import Checkpoint, Params, TrainingRun


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


def load_run(folder: Path, record: dict, retrain=None, about: Mapping[str, str] | None = None) -> TrainingRun:
    """The run of a folder written by :func:`tda.training.train`; ``record`` is its JSON record, with the checksums of
    its checkpoints, ``about`` what the training was given. Refuses checkpoints of another run, seed or step.
    """
    found = []
    for path in sorted(folder.glob("step_*.safetensors")):
        known = record["checkpoints"].get(path.stem.removeprefix("step_").lstrip("0") or "0")
        expect = {**(about or {}), "seed": record["seed"], "sha256": known}
        meta = _open(path, expect, tensors=False)[0]
        load = lambda path=path, expect=expect: read_checkpoint(path, expect)  # noqa: E731
        found.append(Checkpoint(meta["step"], meta["lr"], meta["lr_sum"], load))
    recipe = Recipe.of(record["recipe"])
    initial = [checkpoint for checkpoint in found if checkpoint.step == 0]
    later = [checkpoint for checkpoint in found if checkpoint.step > 0]
    if len(initial) != 1 or len(later) != recipe.checkpoints:
        steps = {int(step) for step in record["checkpoints"]} - {checkpoint.step for checkpoint in found}
        lost = [f"step_{step:06d}.safetensors" for step in sorted(steps)]
        raise ArtefactError(
            f"{folder} holds {len(later)} checkpoints and {len(initial)} initial models, its record says "
            f"{recipe.checkpoints} and 1 (lost: {', '.join(lost)}); delete {folder.parent} and train again"
        )
    rates, order = np.asarray(record["learning_rates"]), data_order(record["examples"], recipe.epochs, record["seed"])
    steps = tuple(steps_of(order, recipe.batch, np.ones(record["examples"], bool), "filter"))
    return TrainingRun(record["seed"], tuple(later), rates, order, record["curves"], retrain, recipe, initial[0], steps)
