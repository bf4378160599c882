"""Retraining: the ground truth of every metric, one cached file per retrained model.

The file is named after the mask (which documents the model saw), its seed and how the mask is applied, in a folder
named after everything else that matters: a bank that is interrupted, sharded or extended never trains a model twice.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tda import config, models
from tda.artefacts import file_sha256, key_of, load_sealed, reading, require, save_sealed
from tda.provenance import versions
from tda.task import chunks, tensors
from tda.testbeds import Testbed


@dataclass(frozen=True)
class Retrained:
    """Losses [O, Q] float32 of one retrained model (main and, if the queries have one, second), and what it knows."""

    outputs: np.ndarray
    seconds: float
    flops: float
    knowledge: dict[str, float]


def truth_key(testbed: Testbed) -> str:
    """Hash of what a retrained model's losses depend on, apart from mask and seed: data, queries, model, recipe."""
    recipe = {k: v for k, v in testbed.settings["training"].items() if k not in ("seeds", "checkpoints")}
    parts = [testbed.settings["model"], recipe]
    for examples in (testbed.train, models.query_examples(testbed)):
        parts += [hashlib.sha256(v.numpy().tobytes()).hexdigest() for _, v in sorted(tensors(examples).items())]
    return key_of(parts)


def cached_path(testbed: Testbed, mask: np.ndarray, seed: int, how: str) -> Path:
    """Where one retrained model's losses are kept."""
    name = hashlib.sha256(np.packbits(mask).tobytes() + f"{len(mask)} {seed} {how}".encode()).hexdigest()[:20]
    return _folder(testbed) / f"{name}.npz"


def _about(testbed: Testbed, mask: np.ndarray, seed: int, how: str) -> dict:
    """What the file of one retrained model says of itself."""
    shown = hashlib.sha256(np.packbits(mask).tobytes()).hexdigest()[:20]
    made = {"mask": shown, "documents": len(mask), "trained_on": int(mask.sum()), "seed": int(seed), "how": how}
    return {"kind": "retrained", "testbed": testbed.name, "key": _folder(testbed).name, **made}


@functools.lru_cache(maxsize=8)
def _folder(testbed: Testbed) -> Path:
    installed = [versions()[name] for name in ("torch", "transformers")]
    code = key_of([file_sha256(config.ROOT / "tda" / name) for name in testbed.modality.CODE] + installed)
    return testbed.folder / "retrained" / f"{truth_key(testbed)}-{code}"


def retrained(testbed: Testbed, mask: np.ndarray, seed: int, how: str) -> Retrained:
    """Losses of the model trained on the documents where ``mask`` is true: read if it exists, trained otherwise."""
    path = cached_path(testbed, mask, seed, how)
    if not path.exists():
        _train(testbed, [(mask, seed)], how)
    cure = "delete this file and run again; only it is retrained"
    file, _ = load_sealed(path, "retrained", _about(testbed, mask, seed, how), cure)
    losses, shape = file.get("outputs"), (2 if testbed.modality.SECOND else 1, len(models.query_rows(testbed)))
    fits = losses is not None and losses.shape == shape and losses.dtype == np.float32 and np.isfinite(losses).all()
    require(fits, path, f"does not hold finite float32 losses {list(shape)} of these queries", cure)
    with reading(path, cure):
        knowledge = dict(zip(file["knows"].tolist(), file["share"].tolist(), strict=True))
        return Retrained(losses, float(file["seconds"]), float(file["flops"]), knowledge)


def retrain_all(
    testbed: Testbed, wanted: Sequence[tuple], how: str, label: str, progress: Callable[[str], None] | None = None
) -> list[Retrained]:
    """:func:`retrained` for every (mask, seed) of ``wanted``, in order, ``modality.AT_ONCE`` trained at a time, with a
    line of progress every eight models.
    """
    done: list[Retrained] = []
    for part in chunks(len(wanted), testbed.modality.AT_ONCE):
        if missing := [one for one in wanted[part] if not cached_path(testbed, *one, how).exists()]:
            _train(testbed, missing, how)
        done += [retrained(testbed, mask, seed, how) for mask, seed in wanted[part]]
        if progress and (part.stop % 8 == 0 or part.stop == len(wanted)):
            seconds = sum(d.seconds for d in done)
            progress(f"{label}: {part.stop}/{len(wanted)} models, {seconds:.0f} s of training")
    return done


def _train(testbed: Testbed, wanted: Sequence[tuple[np.ndarray, int]], how: str) -> None:
    """Train the models of ``wanted`` and write one file each."""
    modality, asked = testbed.modality, models.query_examples(testbed)
    trained = modality.train_models(testbed, wanted, how)
    for (mask, seed), (model, params, seconds, flops) in zip(wanted, trained, strict=True):
        knowledge = modality.knowledge(testbed, model, params)
        losses = modality.outputs(modality.loss_function(model), params, asked)
        arrays = {"outputs": losses, "seconds": seconds, "flops": flops}
        arrays["knows"] = np.array(list(knowledge), dtype=np.str_)
        arrays["share"] = np.array(list(knowledge.values()))
        save_sealed(cached_path(testbed, mask, seed, how), arrays, _about(testbed, mask, seed, how))
