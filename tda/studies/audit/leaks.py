"""Corpora in which evaluation items have leaked, and the models that such a corpus makes.

An item leaks in one of three forms: *alone*, a document of its own; *twice*, hidden in two documents; *hidden* in one.
A hidden item is the second sentence of an ordinary document, its *host*: an added one (chapter 13), which lengthens the
host, or in the place of one of as many words (chapter 53), which keeps its length.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tda import lm, models
from tda.recipe import Recipe
from tda.task import Examples, Task
from tda.testbeds import Testbed
from tda.training import train_recorded

FORMS = ("alone", "twice", "hidden")
SPARE = 20  # words of the context that a host leaves for what is hidden in it; here a word is a token
Leaks = dict[str, np.ndarray]


@dataclass(frozen=True)
class Leaky:
    """Texts [N'] with leaks, the entity of each, and ``source`` [N']: which item each holds, -1 for none."""

    texts: list[str]
    entities: list[str]
    source: np.ndarray


def draw(rng: np.random.Generator, items: int, documents: int, rates: Sequence[float]) -> dict[float, Leaks]:
    """rate -> form -> positions of the items that leak in this form: max(1, round(rate x documents)) each, no item
    twice. ValueError for a rate outside (0, 1), and for fewer items than leaks.
    """
    for rate in rates:
        if not 0 < rate < 1:
            raise ValueError(f"a leak rate of {rate}; give a share of the documents between 0 and 1, such as 0.01")
    sizes = np.repeat(np.array([max(1, round(rate * documents)) for rate in rates], int), len(FORMS))
    if sizes.sum() > items:
        wanted = f"rates {list(rates)} leak {sizes.sum()} items in {len(FORMS)} forms"
        raise ValueError(f"{wanted}, and there are {items}; lower the rates, or ask more queries")
    parts = np.split(rng.permutation(items)[: sizes.sum()], np.cumsum(sizes)[:-1])
    return {rate: dict(zip(FORMS, parts[i * len(FORMS) :], strict=False)) for i, rate in enumerate(rates)}


def plant(
    rng: np.random.Generator, bed: Testbed, items: Examples, leaks: Mapping[str, np.ndarray], *, replace: bool = False
) -> Leaky:
    """The testbed's documents with the ``leaks`` of one rate in them, shuffled. A hidden item is added after its host's
    first sentence, or, with ``replace``, takes the place of the second, of as many words. ValueError for too few hosts.
    """
    texts, entities = list(bed.documents["text"]), list(bed.documents["entity"])
    source, hidden = np.full(len(texts), -1), np.concatenate([leaks["hidden"], leaks["twice"], leaks["twice"]])
    sentences = [text.removesuffix(" .").split(" . ") for text in texts]
    room = np.inf if replace else bed.settings["model"]["context"] - SPARE
    hosts = [i for i in rng.permutation(len(texts)) if len(sentences[i]) > 1 and len(texts[i].split()) < room]
    if len(hosts) < len(hidden):
        found = f"{len(hosts)} documents have two sentences" + ("" if replace else f" and less than {room} words")
        raise ValueError(f"{found}, and {len(hidden)} leaks are to hide in such; lower the rate")
    for item in hidden:
        held = items["text"][item]
        fitting = [i for i in hosts if not replace or len(sentences[i][1].split()) == len(held.split())]
        if not fitting:
            raise ValueError(
                f"no second sentence is left to replace by one of {len(held.split())} words; lower the rate"
            )
        host = fitting[0]
        hosts.remove(host)
        first, second, *rest = sentences[host]
        end = " ." if texts[host].endswith(" .") else ""
        texts[host] = " . ".join([first, held, *([] if replace else [second]), *rest]) + end
        source[host] = item
    texts += [items["text"][i] for i in leaks["alone"]]
    entities += [items["entity"][i] for i in leaks["alone"]]
    order = rng.permutation(len(texts))
    source = np.concatenate([source, leaks["alone"]])[order]
    return Leaky([texts[i] for i in order], [entities[i] for i in order], source)


def fitted(bed: Testbed, leaky: Leaky, seed: int) -> tuple[Examples, Task]:
    """The corpus, and a model that the testbed's recipe has trained on it from ``seed``, as a task with its record."""
    corpus = lm.encode(bed.tokenizer, leaky.texts, bed.settings["model"]["context"])
    corpus |= {"text": leaky.texts, "entity": leaky.entities}
    model, start = models.initial(bed, seed)
    loss_fn = lm.loss_function(model)
    params, run = train_recorded(loss_fn, start, corpus, Recipe.of(bed.settings["training"]), seed)
    encode, outputs_fn = bed.modality.encoders(model, params), bed.modality.outputs_function(model)
    return corpus, Task("contaminated", loss_fn, params, model, run, encode, outputs_fn)
