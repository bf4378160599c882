"""The `digits_*` testbeds: scikit-learn's handwritten digits, with planted label flips, and a small net on them.

The 1,797 images of 8x8 pixels (0 to 16, here 0 to 1) are shuffled once and cut into training images, candidates for
queries, and a validation part. A share of the training labels is wrong, and which ones is recorded. The class that an
image was *given* is its ``entity``: what a reader of the data sees, and what the model is taught.

A query is a held-out image with its true label, whether or not the model gets it right. There is no second output: the
margin, log p - log(1 - p), orders the models of one seed exactly as the loss does.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from tda import classifiers
from tda.classifiers import CLASSES
from tda.many import AT_ONCE, stack, train_many, unstack
from tda.recipe import Recipe
from tda.task import Examples, Params
from tda.testbeds.modality import Modality, counted_flops, kind

IMAGES = 1797


def pixels() -> tuple[np.ndarray, np.ndarray]:
    """All images [1797, 64] float32 in [0, 1], and their labels."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype(np.float32), labels.astype(np.int64)


def flip(labels: np.ndarray, share: float, kind: str, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """``(labels with a share of them wrong, flipped [N] bool)``. ``uniform``: any other class, all alike.
    ``asymmetric``: the next class, 9 becoming 0, so that the wrong labels of a class agree: harder to notice.
    """
    if kind not in ("uniform", "asymmetric") or not 0 <= share < 1:
        raise ValueError(f"flips of kind {kind!r}, share {share}; 'uniform' or 'asymmetric', 0 <= share < 1.")
    flipped = np.zeros(len(labels), bool)
    flipped[rng.permutation(len(labels))[: round(share * len(labels))]] = True
    by = rng.integers(1, CLASSES, len(labels)) if kind == "uniform" else np.ones(len(labels), np.int64)
    return np.where(flipped, (labels + by) % CLASSES, labels), flipped


def encode(rows) -> Examples:
    """``inputs`` [N, 64], ``labels`` [N] and the list ``entity`` of some rows."""
    inputs, labels = np.array(rows["pixels"], np.float32), np.array(rows["label"], np.int64)
    return {"inputs": torch.tensor(inputs), "labels": torch.tensor(labels), "entity": list(rows["entity"])}


def outputs(loss_fn, params: Params, asked: Examples) -> np.ndarray:
    """Losses [1, Q] float32 of every query."""
    with torch.no_grad():
        return loss_fn(params, asked, "example").numpy().astype(np.float32)[None]


@functools.lru_cache(maxsize=16)  # read by every retrained model
def part(testbed, kind: str) -> Examples:
    """The probes of one kind (``held_out`` or ``validation``) as tensors, with their true labels."""
    return encode(testbed.probes.select([i for i, found in enumerate(testbed.probes["kind"]) if found == kind]))


@kind("digits")
class Digits(Modality):
    """Classified images; the work of training is counted in images."""

    MODELS = ("mlp", "cnn")
    OPTIMIZERS = ("sgd",)
    CODE = ("task.py", "classifiers.py", "recipe.py", "many.py", "retrain.py", "testbeds/digits.py")
    AT_ONCE = AT_ONCE

    part, outputs, encoders = staticmethod(part), staticmethod(outputs), staticmethod(classifiers.encoders)
    loss_function = staticmethod(classifiers.loss_function)
    outputs_function = staticmethod(classifiers.outputs_function)

    def build(self, testbed) -> dict:
        settings = testbed.settings["corpus"]
        images, labels = pixels()
        rng = np.random.default_rng([testbed.config["seed"], 61])
        order = rng.permutation(len(images))
        n, held = settings["train"], settings["held_out"]
        given, flipped = flip(labels[order[:n]], settings["flips"], settings["flip_kind"], rng)
        documents = [
            {"doc_id": f"image_{i:04d}", "pixels": images[i].tolist(), "label": int(y), "original": int(labels[i]),
             "flipped": bool(wrong), "entity": str(y)}
            for i, y, wrong in zip(order[:n], given, flipped, strict=True)
        ]  # fmt: skip
        probes = [
            {"query_id": f"image_{i:04d}", "kind": "held_out" if place < held else "validation",
             "pixels": images[i].tolist(), "label": int(labels[i]), "entity": str(labels[i])}
            for place, i in enumerate(order[n:])
        ]  # fmt: skip
        per_class = np.bincount(given, minlength=CLASSES).tolist()
        report = {"images": n, "flipped": int(flipped.sum()), "per_class": per_class, "held_out": held}
        report["validation"] = len(images) - n - held
        return {"documents": documents, "probes": probes, "report": report}

    def check(self, settings: dict) -> Iterator[tuple[str, Any, str]]:
        yield from super().check(settings)
        corpus = settings["corpus"]
        if corpus["train"] + corpus["held_out"] >= IMAGES:
            allowed = f"train ({corpus['train']}) and held_out must leave images of {IMAGES}"
            yield "corpus.held_out", corpus["held_out"], allowed

    def examples(self, testbed) -> Examples:
        return encode(testbed.documents) | {"doc_id": list(testbed.documents["doc_id"])}

    def new_model(self, testbed, seed: int) -> torch.nn.Module:
        model = testbed.settings["model"]
        make = {"mlp": classifiers.mlp, "cnn": classifiers.cnn}[model["kind"]]
        return make(model["depth"], model["width"], seed, model["activation"])

    def train_models(self, testbed, wanted: Sequence[tuple[np.ndarray, int]], how: str) -> Iterator[tuple]:
        """Trained side by side."""
        recipe, began = Recipe.of(testbed.settings["training"]), time.perf_counter()
        fresh = [self.new_model(testbed, seed) for _, seed in wanted]
        init = stack([classifiers.parameters(model) for model in fresh])
        masks, seeds = np.stack([mask for mask, _ in wanted]), [seed for _, seed in wanted]
        trained = train_many(self.loss_function(fresh[0]), init, testbed.train, recipe, masks, seeds, how)
        seconds = (time.perf_counter() - began) / len(wanted)
        each = self.flops(fresh[0], 1) * recipe.epochs
        for model, params, mask in zip(fresh, unstack(trained), masks, strict=True):
            yield model, params, seconds, each * int(mask.sum())

    def flops(self, model: torch.nn.Module, tokens: int) -> float:
        """As the library counts them."""
        image = {"inputs": torch.zeros(1, 64), "labels": torch.zeros(1, dtype=torch.long)}
        return counted_flops(self.loss_function(model), model, image) * tokens

    def knowledge(self, testbed, model: torch.nn.Module, params: Params) -> dict[str, float]:
        """Accuracy on the validation images, the candidates for queries, and the training images as labelled."""
        sets = {name: part(testbed, name) for name in ("validation", "held_out")} | {"trained": testbed.train}
        return {name: classifiers.accuracy(model, params, images) for name, images in sets.items()}

    def held_out(self, testbed) -> Examples:
        """The validation images."""
        return part(testbed, "validation")

    def choose_queries(self, testbed, model: torch.nn.Module, params: Params) -> tuple[list[dict], dict]:
        """Held-out images, drawn and split into ``tune`` and ``test`` by the config's seed; the model is not asked."""
        wanted, rng = testbed.settings["queries"], np.random.default_rng([testbed.config["seed"], 17])
        candidates = [row for row in testbed.probes if row["kind"] == "held_out"]
        kept = sorted(rng.permutation(len(candidates))[: wanted["held_out"]])
        tune = set(rng.permutation(len(kept))[: round(wanted["tune"] * len(kept))].tolist())
        rows = []
        for place, i in enumerate(kept):
            split, label = "tune" if place in tune else "test", candidates[i]["entity"]
            row = {"query_id": candidates[i]["query_id"], "query_set": "held_out", "split": split}
            row |= dict.fromkeys(("prompt", "text", "attribute", "value", "work"), "")
            rows.append(row | {"target": label, "entity": label})
        right = classifiers.accuracy(model, params, self.encode_queries(testbed, rows))
        return rows, {"queries": {"held_out": len(rows)}, "accuracy on the queries": round(right, 3)}

    def encode_queries(self, testbed, rows: list[dict]) -> Examples:
        """Their pixels are in the probes."""
        place = {query_id: i for i, query_id in enumerate(testbed.probes["query_id"])}
        encoded = encode(testbed.probes.select([place[row["query_id"]] for row in rows]))
        return encoded | {k: [row[k] for row in rows] for k in ("query_id", "query_set", "split")}

    def targets(self, asked: Examples) -> np.ndarray:
        return np.ones(len(asked["labels"]), np.int64)

    def relevance(self, testbed, rows: list[dict]) -> np.ndarray:
        """Training images that show the query's class and are labelled as it."""
        original, flipped = (np.array(testbed.documents[name]) for name in ("original", "flipped"))
        return np.array([(original == int(row["entity"])) & ~flipped for row in rows])
