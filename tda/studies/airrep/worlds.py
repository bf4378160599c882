"""Small worlds to transfer to: texts, a language model of its own, and labels; one vocabulary for all of them.

Words are hashed to a fixed number of tokens, so that one encoder reads every world. The model of a world is trained
briefly and the labels come from fine-tuning it, as in the method.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from tda import lm
from tda.encoding import labels as labelling
from tda.encoding.labels import Design, Labels
from tda.recipe import Recipe
from tda.task import Examples, Params, Task
from tda.testbeds import Testbed, people
from tda.training import train
from tda.words import words

TOKENS, LONGEST = 1024, 40  # of the hashed vocabulary; words of a text that are read
SMALL = {"layers": 1, "width": 64, "heads": 4, "context": LONGEST + 1, "parallel_residual": False, "init_std": 0.05}
ASKED = {
    "birthplace": "where was {who} born",
    "profession": "what does {who} do for a living",
    "school": "which school did {who} go to",
    "instrument": "what does {who} play",
    "employer": "who employs {who}",
    "pet": "which animal lives with {who}",
}


@dataclass(frozen=True)
class World:
    """``documents`` in hashed tokens, the task of a model that was trained on them briefly, and its labels."""

    name: str
    documents: Examples
    task: Task
    labels: Labels


def hashed(texts: Sequence[str]) -> Examples:
    """Texts as tokens: 1 opens each, a word is 2 plus its checksum modulo ``TOKENS - 2``, at most ``LONGEST`` words."""
    rows = [[2 + zlib.crc32(word.encode()) % (TOKENS - 2) for word in words(text)[:LONGEST]] for text in texts]
    ids = torch.zeros(len(rows), 1 + max(map(len, rows)), dtype=torch.int64)
    labels = torch.full_like(ids, lm.IGNORE)
    for i, row in enumerate(rows):
        ids[i, 0], ids[i, 1 : 1 + len(row)], labels[i, 1 : 1 + len(row)] = 1, torch.tensor(row), torch.tensor(row)
    return {"input_ids": ids, "labels": labels, "text": list(texts)}


def make(name: str, texts: Sequence[str], design: Design, epochs: int = 2) -> World:
    """Train a model of the texts for some epochs and label it."""
    documents = hashed(texts)
    model = lm.new_model(SMALL, TOKENS, design.seed)
    loss_fn, init = lm.loss_function(model), {k: v.detach() for k, v in model.named_parameters()}
    start = train(loss_fn, init, documents, Recipe(epochs, 16, 0.008, 0.01, warmup=0.1, clip=1.0), design.seed).params
    task = Task(name, loss_fn, start, model)
    return World(name, documents, task, labelling.label_bank(loss_fn, start, documents, design))


def question_answers(facts: Sequence[Sequence[str]]) -> list[str]:
    """A question and its answer for every fact ``who|attribute|value`` of some documents, each once."""
    parts = sorted({fact for stated in facts for fact in stated})
    split = [fact.split("|") for fact in parts]
    return [f"{ASKED[attribute].format(who=who)} ? {value}" for who, attribute, value in split]


def other_people(testbed: Testbed) -> dict:
    """Documents of a corpus like the testbed's, about other people: columns text and facts."""
    found = people.build(testbed.settings["corpus"], testbed.config["seed"] + 1)["documents"]
    return {name: [row[name] for row in found] for name in ("text", "facts")}


def about(facts: Sequence[Sequence[str]], attribute: str) -> np.ndarray:
    """[N] bool: documents that state a fact of this attribute."""
    return np.array([any(fact.split("|")[1] == attribute for fact in stated) for stated in facts])


def other_models(testbed: Testbed, epochs: int) -> dict[str, tuple]:
    """``name -> (loss_fn, parameters)`` of a smaller model and one of another architecture (a Llama of about the same
    size), each trained on the testbed's documents for some epochs of its recipe.
    """
    settings = testbed.settings
    halved = {name: settings["model"][name] // 2 for name in ("width", "heads")}
    smaller = settings["model"] | halved | {"layers": 1}
    vocabulary, seed = testbed.tokenizer.get_vocab_size(), testbed.config["seed"] + 77
    made = {"smaller model": lm.new_model(smaller, vocabulary, seed)}
    made["Llama"] = llama(settings["model"], vocabulary, seed)
    recipe = Recipe.of(settings["training"] | {"epochs": epochs, "checkpoints": 1})
    return {name: _trained(model, testbed.train, recipe, seed) for name, model in made.items()}


def llama(settings: dict, vocabulary: int, seed: int) -> torch.nn.Module:
    """A Llama of this width and depth: gated feed-forward, RMS norms, full rotary embedding, no biases."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=settings["width"],
        intermediate_size=2 * settings["width"],
        num_hidden_layers=settings["layers"],
        num_attention_heads=settings["heads"],
        max_position_embeddings=settings["context"],
        initializer_range=settings["init_std"],
        use_cache=False,
        attn_implementation="eager",
    )
    torch.manual_seed(seed)
    return LlamaForCausalLM(config).eval()


def _trained(model: torch.nn.Module, documents: Examples, recipe: Recipe, seed: int) -> tuple:
    loss_fn = lm.loss_function(model)
    init: Params = {k: v.detach() for k, v in model.named_parameters()}
    return loss_fn, train(loss_fn, init, documents, recipe, seed).params
