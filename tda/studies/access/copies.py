"""Data that are not the target's: a copy in other words, and what a model can be trained on elsewhere."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch

from tda import lm
from tda.access import check_tokens
from tda.task import Examples, take
from tda.testbeds import Testbed, people, statements


def rewritten(texts: Sequence[str], never: Collection[str], rng: np.random.Generator) -> list[str]:
    """Documents of the `people` corpus with every sentence in another wording, chosen at random; people are named where
    they were not. A text that names nobody stays as it is. ``never``: sentences that must not come up (the queries).
    """
    written = []
    for text in texts:
        parts = []
        for who, attribute, value in statements.parse(text):
            ways = [statements.sentence(who, attribute, w, value) for w in range(len(statements.WORDINGS[attribute]))]
            free = [way for way in ways if way not in text and way.removesuffix(" .") not in never]
            parts.append(free[rng.integers(len(free))] if free and who else "")
        written.append(" ".join(parts) if parts and all(parts) else text)
    return written


def paraphrased(bed: Testbed, queries: Examples, rng: np.random.Generator) -> Examples:
    """A copy of the training data that is not theirs word for word: texts :func:`rewritten`; images half a pixel to the
    side, each pixel the mean of itself and its left neighbour.
    """
    if "inputs" in bed.train:
        pictures = bed.train["inputs"].reshape(-1, 8, 8)
        moved = torch.nn.functional.pad(pictures, (1, 0))[..., :-1]
        return bed.train | {"inputs": ((pictures + moved) / 2).flatten(1)}
    texts = rewritten(bed.train["text"], set(queries["text"]), rng)
    encoded = lm.encode(bed.tokenizer, texts, bed.settings["model"]["context"])
    return encoded | {"entity": bed.train["entity"]}


def elsewhere(bed: Testbed, count: int, seed: int) -> Examples:
    """Examples of another task on other data: images that the target was not trained on, turned by 0 to 3 quarters,
    the turn their class; or documents on other invented people.
    """
    rng = np.random.default_rng([seed, 47])
    if "inputs" in bed.train:
        others = take(bed.modality.part(bed, "validation"), slice(0, count))
        turns = rng.integers(0, 4, len(others["labels"]))
        pictures = others["inputs"].reshape(-1, 8, 8)
        turned = torch.stack([picture.rot90(int(turn)) for picture, turn in zip(pictures, turns, strict=True)])
        return {"inputs": turned.flatten(1), "labels": torch.from_numpy(turns), "entity": [str(t) for t in turns]}
    made = people.build(bed.settings["corpus"], bed.config["seed"] + 1 + seed)
    check_tokens(bed.tokenizer.get_vocab(), made["tokenizer"].get_vocab(), "S5")
    texts = [row["text"] for row in made["documents"]][:count]
    encoded = lm.encode(bed.tokenizer, texts, bed.settings["model"]["context"])
    return encoded | {"entity": [row["entity"] for row in made["documents"]][:count]}
