"""Retraining: the ground truth of every metric, one cached file per retrained model.

A retrained model is fixed by its mask (which documents it saw), its seed (initialisation and data order) and how the
mask is applied (:mod:`tda.training`). What is kept of it are its losses on all queries. The file name is a hash of
these three, inside a folder named after everything else that matters (corpus, queries, model, recipe and the code that
trains), so a bank that is interrupted, sharded over machines, or extended by a row never trains a model twice.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tda import config, lm, models, queries
from tda.artefacts import ArtefactError, atomic, file_sha256, key_of
from tda.provenance import versions
from tda.task import Examples, Params, tensors
from tda.testbeds import Testbed
from tda.training import Recipe, train, training_flops

CODE = ("task.py", "lm.py", "models.py", "training.py", "retrain.py")


@dataclass(frozen=True)
class Retrained:
    """Losses [2, Q] float32 of one retrained model (main and second output), its seconds and FLOPs, and its recall of
    answers in trained and held-out wordings (NaN where answers are not defined)."""

    outputs: np.ndarray
    seconds: float
    flops: float
    recall: tuple[float, float]


def truth_key(testbed: Testbed) -> str:
    """Hash of what a retrained model's losses depend on, apart from mask and seed: data, queries, model, recipe."""
    recipe = {k: v for k, v in testbed.settings["training"].items() if k not in ("seeds", "checkpoints")}
    parts = [testbed.settings["model"], recipe]
    for examples in (testbed.train, models.query_examples(testbed)):
        parts += [hashlib.sha256(v.numpy().tobytes()).hexdigest() for _, v in sorted(tensors(examples).items())]
    return key_of(parts)


def bank_seeds(testbed: Testbed, count: int) -> list[int]:
    """Seeds of retrained models, disjoint from those of the base models (which are attributed, never scored
    against).
    """
    return [1000 * (testbed.config["seed"] + 1) + r for r in range(count)]


def cached_path(testbed: Testbed, mask: np.ndarray, seed: int, how: str) -> Path:
    """Where one retrained model's losses are kept."""
    name = hashlib.sha256(np.packbits(mask).tobytes() + f"{len(mask)} {seed} {how}".encode()).hexdigest()[:20]
    return _folder(testbed) / f"{name}.npz"


@functools.lru_cache(maxsize=8)
def _folder(testbed: Testbed) -> Path:
    installed = [versions()[name] for name in ("torch", "transformers")]
    code = key_of([file_sha256(config.ROOT / "tda" / name) for name in CODE] + installed)
    return testbed.folder / "retrained" / f"{truth_key(testbed)}-{code}"


def retrained(testbed: Testbed, mask: np.ndarray, seed: int, how: str) -> Retrained:
    """Losses of the model trained on the documents where ``mask`` is true: read if it exists, trained otherwise."""
    path = cached_path(testbed, mask, seed, how)
    if not path.exists():
        _train_one(testbed, mask, seed, how, path)
    try:
        with np.load(path, allow_pickle=False) as file:
            found = Retrained(
                file["outputs"], float(file["seconds"]), float(file["flops"]), tuple(file["recall"].tolist())
            )
    except Exception as error:
        raise ArtefactError(
            f"{path} is damaged ({error}). Delete this file and run again; only it is retrained."
        ) from None
    if found.outputs.shape != (2, len(models.query_rows(testbed))) or not np.isfinite(found.outputs).all():
        raise ArtefactError(
            f"{path} does not belong to these queries. Delete this file and run again; only it is retrained."
        )
    return found


def retrain_all(
    testbed: Testbed,
    wanted: Sequence[tuple[np.ndarray, int]],
    how: str,
    label: str,
    progress: Callable[[str], None] | None = None,
) -> list[Retrained]:
    """:func:`retrained` for every (mask, seed) of ``wanted``, in order, with a line of progress every eight models."""
    done: list[Retrained] = []
    for number, (mask, seed) in enumerate(wanted, start=1):
        done.append(retrained(testbed, mask, seed, how))
        if progress and (number % 8 == 0 or number == len(wanted)):
            progress(f"{label}: {number}/{len(wanted)} models, {training_seconds(done):.0f} s of training")
    return done


def training_seconds(done: Iterable[Retrained]) -> float:
    """Core-seconds that these models took to train, whenever that was."""
    return float(sum(d.seconds for d in done))


def query_losses(loss_fn, params: Params, asked: Examples) -> np.ndarray:
    """Losses [2, Q] float32 of every query, main and second output, from one sweep over the tokens of both."""
    targets = [asked[name] != lm.IGNORE for name in ("labels", "labels_second")]
    union = torch.where(targets[0], asked["labels"], asked["labels_second"])
    nll = lm.losses(loss_fn, params, asked | {"labels": union}, "token")
    return np.stack([(nll * t.numpy()).sum(1) / t.sum(1).numpy() for t in targets]).astype(np.float32)


def _train_one(testbed: Testbed, mask: np.ndarray, seed: int, how: str, path: Path) -> None:
    model, init = models.initial(testbed, seed)
    loss_fn, recipe = lm.loss_function(model), Recipe.of(testbed.settings["training"])
    done = train(loss_fn, init, testbed.train, recipe, seed, mask, how)
    asked = models.query_examples(testbed)
    outputs = query_losses(loss_fn, done.params, asked)
    recall = {}
    if testbed.settings["corpus"]["kind"] == "people":
        probes, context = list(testbed.probes), testbed.settings["model"]["context"]
        recall = queries.recall(model, done.params, testbed.tokenizer, probes, context)
    known = [recall.get(kind, np.nan) for kind in ("trained", "held_out")]
    cost = {"seconds": done.seconds, "flops": training_flops(model, done.tokens), "recall": known}
    with atomic(path) as temporary, temporary.open("wb") as handle:
        np.savez(handle, outputs=outputs, **cost)
