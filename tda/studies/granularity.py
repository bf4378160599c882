"""From token scores to sentences, documents and authors (chapter 11).

A method that scores tokens (BGO: the loss difference of each) scores every larger unit by the mean over its tokens, so
a long document does not win by its length and a document's score equals the method's own. An author's score is the mean
of the documents', each document counting once.
"""

from __future__ import annotations

import re

import numpy as np
from tokenizers import Tokenizer

from tda.output_loss import IGNORE
from tda.task import Examples

LEVELS = ("sentence", "document", "author")


def aggregate(tokens: np.ndarray, examples: Examples, level: str, *, tokenizer: Tokenizer | None = None):
    """Token scores [Q, N, T] of ``examples`` at a coarser ``level``.

    - ``sentence``: a list over documents of [Q, sentences], NaN for one without tokens; needs the ``tokenizer``, to
      place tokens in the text;
    - ``document``: [Q, N];
    - ``author``: ``(names, [Q, names])``, authors being ``examples["entity"]``.

    Raises ``ValueError`` for another level, another shape, and without the tokenizer that a level needs.
    """
    if level not in LEVELS:
        raise ValueError(f"granularity {level!r}; one of {LEVELS}.")
    target = np.asarray(examples["labels"]) != IGNORE
    target[:, 0] = False  # the document boundary is never predicted
    if tokens.ndim != 3 or tokens.shape[1] != len(target) or tokens.shape[2] > target.shape[1]:
        raise ValueError(f"token scores have shape {tokens.shape}; [queries, {len(target)}, <= {target.shape[1]}] fit.")
    if level == "sentence":
        if tokenizer is None:
            raise ValueError(f"granularity {level!r} needs a tokenizer.")
        return [_by_sentence(tokens[:, i], text, tokenizer) for i, text in enumerate(examples["text"])]
    target = target[:, : tokens.shape[2]]
    documents = (tokens * target).sum(2) / target.sum(1)
    if level == "document":
        return documents
    names = sorted(set(examples["entity"]))
    of = np.array([names.index(name) for name in examples["entity"]])
    return names, np.stack([documents[:, of == a].mean(1) for a in range(len(names))], axis=1)


def sentences(text: str) -> list[tuple[int, int]]:
    """Character spans of sentences: they end with . ! or ? before white space or the end of the text."""
    found = [match.span() for match in re.finditer(r"\S.*?(?:[.!?]+(?=\s|$)|$)", text, flags=re.DOTALL)]
    return found or [(0, len(text))]


def _by_sentence(tokens: np.ndarray, text: str, tokenizer: Tokenizer) -> np.ndarray:
    """Mean over the tokens that begin inside each sentence; token t of the text stands at position t + 1."""
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    # a byte-level token carries the space before it: what counts is its first visible character
    starts = np.array([min(b + len(text[b:e]) - len(text[b:e].lstrip()), max(b, e - 1)) for b, e in offsets])
    units = []
    for begin, end in sentences(text):
        inside = 1 + np.flatnonzero((starts >= begin) & (starts < end))
        units.append(tokens[:, inside].mean(1) if len(inside) else np.full(len(tokens), np.nan))
    return np.stack(units, axis=1)
