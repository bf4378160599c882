"""From token scores to sentences, passages, documents and authors.

A method that scores tokens (BGO: the loss difference of each) scores every larger unit by the mean over its tokens, so
a long document does not win by its length and a document's score equals the method's own. An author's score is the mean
of the documents', each document counting once.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
from tokenizers import Tokenizer

from tda.output_loss import IGNORE
from tda.task import Examples

LEVELS = ("token", "sentence", "passage", "document", "author")
Spans = Sequence[tuple[int, int]]


def aggregate(
    tokens: np.ndarray,
    examples: Examples,
    level: str,
    *,
    tokenizer: Tokenizer | None = None,
    spans: Sequence[Spans] | None = None,
    authors: Sequence[str] | None = None,
):
    """Token scores [Q, N, T] of ``examples`` at a coarser ``level``.

    - ``token``: a list over documents of [Q, targets of the document];
    - ``sentence``, ``passage``: a list over documents of [Q, units], NaN for a unit without tokens; ``tokenizer`` is
      needed to place tokens in the text, and ``spans`` [(begin, end), ...] in characters per document for a passage
      (a sentence's are found by :func:`sentences` where not given);
    - ``document``: [Q, N];
    - ``author``: ``(names, [Q, names])``, from ``authors`` [N] (by default ``examples["entity"]``).

    Raises ``ValueError`` for another level, spans outside the text, and what a level needs but was not given.
    """
    if level not in LEVELS:
        raise ValueError(f"granularity {level!r}; one of {LEVELS}.")
    target = np.asarray(examples["labels"]) != IGNORE
    target[:, 0] = False  # the document boundary is never predicted
    if tokens.ndim != 3 or tokens.shape[1] != len(target) or tokens.shape[2] > target.shape[1]:
        raise ValueError(f"token scores have shape {tokens.shape}; [queries, {len(target)}, <= {target.shape[1]}] fit.")
    target = target[:, : tokens.shape[2]]
    if level == "token":
        return [tokens[:, i, target[i]] for i in range(len(target))]
    if level in ("document", "author"):
        documents = (tokens * target).sum(2) / target.sum(1)
        authors = examples["entity"] if authors is None and level == "author" else authors
        return documents if level == "document" else _by_author(documents, authors)
    if tokenizer is None or (level == "passage" and spans is None):
        raise ValueError(f"granularity {level!r} needs {'a tokenizer' if tokenizer is None else 'spans'}.")
    spans = [sentences(text) for text in examples["text"]] if spans is None else spans
    if len(spans) != len(target):
        raise ValueError(f"{len(spans)} lists of spans for {len(target)} documents; give one list per document.")
    return [_by_span(tokens[:, i], examples["text"][i], spans[i], tokenizer, i) for i in range(len(target))]


def sentences(text: str) -> list[tuple[int, int]]:
    """Character spans of sentences: they end with . ! or ? before white space or the end of the text."""
    found = [match.span() for match in re.finditer(r"\S.*?(?:[.!?]+(?=\s|$)|$)", text, flags=re.DOTALL)]
    return found or [(0, len(text))]


def _by_author(documents: np.ndarray, authors: Sequence[str]) -> tuple[list[str], np.ndarray]:
    if len(authors) != documents.shape[1]:
        raise ValueError(f"{len(authors)} authors for {documents.shape[1]} documents; give one per document.")
    names = sorted(set(authors))
    of = np.array([names.index(name) for name in authors])
    return names, np.stack([documents[:, of == a].mean(1) for a in range(len(names))], axis=1)


def _by_span(tokens: np.ndarray, text: str, spans: Spans, tokenizer: Tokenizer, number: int) -> np.ndarray:
    """Mean over the tokens that begin inside each span; token t of the text stands at position t + 1."""
    for begin, end in spans:
        if not 0 <= begin < end <= len(text):
            raise ValueError(
                f"document {number}: span ({begin}, {end}) falls outside its text of {len(text)} characters."
            )
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    # a byte-level token carries the space before it: what counts is its first visible character
    starts = np.array([min(b + len(text[b:e]) - len(text[b:e].lstrip()), max(b, e - 1)) for b, e in offsets])
    units = []
    for begin, end in spans:
        inside = 1 + np.flatnonzero((starts >= begin) & (starts < end))
        units.append(tokens[:, inside].mean(1) if len(inside) else np.full(len(tokens), np.nan))
    return np.stack(units, axis=1)
