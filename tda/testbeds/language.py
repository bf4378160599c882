"""Testbeds of language models: texts, a GPT-NeoX, queries that the model knows.

One of the two modules behind :attr:`tda.testbeds.Testbed.modality`; the other is :mod:`tda.testbeds.digits`. Both have
the same functions, each about one testbed, and everything else in the package goes through them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from tda import lm, queries
from tda.task import Examples, Params
from tda.testbeds import Testbed
from tda.testbeds.people import fact_id
from tda.training import Recipe, train

# What a retrained model's losses depend on, beside the data: an edit makes cached models stale.
CODE = ("task.py", "lm.py", "saved.py", "training.py", "retrain.py", "testbeds/language.py")
AT_ONCE = 1  # models that are trained together
loss_function, outputs_function = lm.loss_function, lm.outputs_function


def examples(testbed: Testbed) -> Examples:
    """The documents as tensors plus the lists ``text``, ``entity``, ``doc_id``."""
    documents, context = testbed.documents, testbed.settings["model"]["context"]
    names = [f"document {name!r}" for name in documents["doc_id"]]
    encoded = lm.encode(testbed.tokenizer, documents["text"], context, names=names)
    return encoded | {"entity": list(documents["entity"]), "doc_id": list(documents["doc_id"])}


def new_model(testbed: Testbed, seed: int) -> torch.nn.Module:
    """A model with the fresh weights of this seed."""
    return lm.new_model(testbed.settings["model"], testbed.tokenizer.get_vocab_size(), seed)


def encoders(model: torch.nn.Module, params: Params) -> dict:
    """``Task.encode``: text, group (entity) and features (mean-pooled final hidden states)."""
    return {
        "text": lambda examples: examples["text"],
        "group": lambda examples: examples["entity"],
        "features": lambda examples: lm.hidden_states(model, params, examples),
    }


def held_out(testbed: Testbed) -> Examples:
    """What the loss is watched on during training: the candidates for held-out queries."""
    rows = [row for row in testbed.probes if row["kind"] == "held_out"]
    texts, names = [row["text"] for row in rows], [f"query {row['query_id']!r}" for row in rows]
    return lm.encode(testbed.tokenizer, texts, testbed.settings["model"]["context"], names=names)


def knowledge(testbed: Testbed, model: torch.nn.Module, params: Params) -> dict[str, float]:
    """Share of the probes whose answer the model completes, by kind (empty where answers are not defined)."""
    if testbed.settings["corpus"]["kind"] != "people":
        return {}
    context = testbed.settings["model"]["context"]
    return queries.recall(model, params, testbed.tokenizer, list(testbed.probes), context)


def flops(model: torch.nn.Module, tokens: int) -> float:
    """6 x parameters outside the input embedding x real tokens: matrix products of a forward and a backward pass.

    Attention scores, padding and element-wise work are not counted, so the achieved fraction is a lower bound.
    """
    embedding = model.get_input_embeddings().weight.numel()
    return 6.0 * (sum(p.numel() for p in model.parameters()) - embedding) * tokens


def train_models(testbed: Testbed, wanted: Sequence[tuple[np.ndarray, int]], how: str) -> Iterator[tuple]:
    """``(model, final parameters, seconds, flops)`` for every (mask, seed) of ``wanted``."""
    recipe = Recipe.of(testbed.settings["training"])
    for mask, seed in wanted:
        model = new_model(testbed, seed)
        init = {k: v.detach() for k, v in model.named_parameters()}
        done = train(loss_function(model), init, testbed.train, recipe, seed, mask, how)
        yield model, done.params, done.seconds, flops(model, done.tokens)


def second_output(testbed: Testbed) -> str | None:
    """Name of the second loss of a query; ``None`` would mean that there is none."""
    return queries.second_output(testbed.settings["corpus"]["kind"])


def outputs(loss_fn, params: Params, asked: Examples) -> np.ndarray:
    """Losses [2, Q] float32 of every query, main and second output, from one sweep over the tokens of both."""
    targets = [asked[name] != lm.IGNORE for name in ("labels", "labels_second")]
    union = torch.where(targets[0], asked["labels"], asked["labels_second"])
    nll = lm.losses(loss_fn, params, asked | {"labels": union}, "token")
    return np.stack([(nll * t.numpy()).sum(1) / t.sum(1).numpy() for t in targets]).astype(np.float32)


def choose_queries(testbed: Testbed, model: torch.nn.Module, params: Params) -> tuple[list[dict], dict]:
    """The queries for a trained model, and a report of what was left out and why."""
    return queries.choose(testbed, model, params)


def encode_queries(testbed: Testbed, rows: list[dict]) -> Examples:
    """Query rows as tensors and lists."""
    settings = testbed.settings
    return queries.encode_queries(testbed.tokenizer, rows, settings["corpus"]["kind"], settings["model"]["context"])


def targets(asked: Examples) -> np.ndarray:
    """Number of target tokens of the main loss of every query, [Q]."""
    return (asked["labels"][:, 1:] != lm.IGNORE).sum(1).numpy()


def cluster(row: dict) -> str:
    """Queries with the same label are not independent draws: the person or author, else the query itself."""
    return row["entity"] or row["query_id"]


def relevance(testbed: Testbed, rows: list[dict]) -> np.ndarray:
    """[Q, N] bool: documents that state the queried fact (`people`), or share the query's entity (elsewhere)."""
    documents = testbed.documents
    if testbed.settings["corpus"]["kind"] == "people":
        facts = [set(f) for f in documents["facts"]]
        return np.array([[fact_id(r["entity"], r["attribute"], r["value"]) in f for f in facts] for r in rows])
    entity = np.array(documents["entity"])
    return np.array([(entity == r["entity"]) & (r["entity"] != "") for r in rows])


def save_pretrained(testbed: Testbed, model, params: Params) -> None:
    """The model in the format of the hub, so that other libraries open it (``from_pretrained``)."""
    from transformers import PreTrainedTokenizerFast
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    folder = testbed.folder / "model" / "pretrained"
    model.load_state_dict(params, strict=False)
    model.save_pretrained(folder)
    opening = testbed.tokenizer.id_to_token(lm.boundary_id(testbed.tokenizer))
    PreTrainedTokenizerFast(tokenizer_object=testbed.tokenizer, bos_token=opening).save_pretrained(folder)
