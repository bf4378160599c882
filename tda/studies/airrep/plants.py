"""Two plants that part influence from similarity, about people who occur nowhere in the corpus.

For every query, such as ``Abra Bolt keeps a pet newt``:

- an *influential* document states the same fact in other words, in the midst of statements about somebody else;
- a *look-alike* has the query's very wording, a part of the name, and another value; alone, or in the midst of the same
  statements (``amid``), so that length cannot part the two.

What they really do is measured by fine-tuning, with the loss of the answer alone.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import pad

from tda import lm, queries
from tda.recipe import Recipe
from tda.task import Examples, Task, take, tensors
from tda.testbeds import Testbed
from tda.testbeds.statements import FIRST, LAST, VALUES, sentence
from tda.training import train
from tda.words import words

KINDS = ("influential", "look_alike", "amid")


@dataclass(frozen=True)
class Plants:
    """Examples, one of each kind for every query."""

    queries: Examples
    influential: Examples
    look_alike: Examples
    amid: Examples


def plant(testbed: Testbed, count: int) -> Plants:
    """``count`` queries about invented people, and their two plants."""
    rng, settings = np.random.default_rng([testbed.config["seed"], 95]), testbed.settings["corpus"]
    known = set(testbed.documents["entity"])
    free = [f"{first} {last}" for first in FIRST for last in LAST if f"{first} {last}" not in known]
    names = [free[i] for i in rng.permutation(len(free))]
    attributes = list(VALUES)[: settings["attributes"]]
    rows, influential, look_alike, amid = [], [], [], []
    for number in range(count):
        who, somebody = names[number], names[count + number]
        attribute = attributes[number % len(attributes)]
        value, other = rng.permutation(VALUES[attribute][: settings["values"]])[:2]
        asked = sentence(who, attribute, number % 5, value).removesuffix(" .")
        prompt = asked.removesuffix(f" {value}")
        rows.append({"prompt": prompt, "target": f" {value}", "text": asked, "entity": who})
        wordings = [w for w in range(settings["wordings"]) if w != number % 5]
        told = min((sentence(who, attribute, w, value) for w in wordings), key=lambda text: _common(text, asked))
        rest = [a for a in attributes if a != attribute][:2]
        around = [sentence(somebody, a, int(rng.integers(settings["wordings"])), VALUES[a][0]) for a in rest]
        influential.append(" ".join([around[0], told, around[-1]]))
        alike = f"{who.split()[0]} {somebody.split()[1]}"
        look_alike.append(sentence(alike, attribute, number % 5, other))
        amid.append(" ".join([around[0], look_alike[-1], around[-1]]))
    context, tokenizer = testbed.settings["model"]["context"], testbed.tokenizer
    documents = (lm.encode(tokenizer, texts, context) for texts in (influential, look_alike, amid))
    return Plants(queries.encode_queries(tokenizer, rows, "target", context), *documents)


def _common(one: str, other: str) -> int:
    return len(set(words(one)) & set(words(other)))


def effects(task: Task, start, train_set: Examples, plants: Plants, seeds: int, size: int) -> dict[str, np.ndarray]:
    """How much fine-tuning on each kind of plant, beside ``size`` documents, lowers the loss of each query's answer
    below that without plants: kind -> [seeds, queries] nats.
    """
    rng, recipe = np.random.default_rng(96), Recipe(8, 16, 0.004, weight_decay=0.01, warmup=0.1, clip=1.0)
    found: dict[str, list] = {kind: [] for kind in KINDS}
    for seed in range(seeds):
        background = tensors(take(train_set, np.sort(rng.permutation(len(train_set["input_ids"]))[:size])))
        without = _losses(task, start, background, plants, recipe, seed)
        for kind, gains in found.items():
            both = _join(background, tensors(getattr(plants, kind)))
            gains.append(without - _losses(task, start, both, plants, recipe, seed))
    return {kind: np.array(gains) for kind, gains in found.items()}


def _losses(task: Task, start, documents: Examples, plants: Plants, recipe: Recipe, seed: int) -> np.ndarray:
    done = train(task.loss_fn, start, documents, recipe, seed)
    return lm.losses(task.loss_fn, done.params, tensors(plants.queries))


def _join(a: Examples, b: Examples) -> Examples:
    width = max(a["input_ids"].shape[1], b["input_ids"].shape[1])
    fill = {"input_ids": lm.PAD_ID, "labels": lm.IGNORE}
    return {k: torch.cat([pad(x[k], (0, width - x[k].shape[1]), value=v) for x in (a, b)]) for k, v in fill.items()}
