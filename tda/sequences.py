"""Texts as tensors of tokens: a boundary, the tokens, padding on the right, and labels where something is predicted."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor

from tda.output_loss import IGNORE
from tda.task import Examples, n_examples

PAD_ID, BOUNDARY_ID = 0, 1  # where the tokenizers made here put padding and the document boundary


def boundary_id(tokenizer: Tokenizer) -> int:
    """The id of the token that opens every document: what the tokenizer's own template puts first, else ``<bos>``,
    ``<eos>``, ``<|endoftext|>`` or ``</s>``, the first that it has. Raises ``ValueError`` for one that has none.
    """
    if tokenizer.num_special_tokens_to_add(False):
        return tokenizer.encode("").ids[0]
    for name in ("<bos>", "<eos>", "<|endoftext|>", "</s>"):
        if tokenizer.token_to_id(name) is not None:
            return tokenizer.token_to_id(name)
    raise ValueError("the tokenizer has none of <bos>, <eos>, <|endoftext|>, </s> to open a document with; add one.")


def encode(
    tokenizer: Tokenizer,
    texts: Sequence[str],
    context: int,
    targets: Sequence[str] | None = None,
    names: Sequence[str] | None = None,
) -> Examples:
    """Texts as tensors: ``input_ids`` and ``labels`` [N, T], right-padded, each text after a document boundary.

    With ``targets`` (the last part of each text) only its tokens are labels. A special token that is written out in a
    text is text, so the tokenizer is set to encode it so. ``names`` are what errors call the texts (``text 0``, ...).
    Raises ``ValueError`` for an empty text, a text longer than the context, a word outside a closed vocabulary, a query
    without target tokens, and a tokenizer that pads or cuts.
    """
    if tokenizer.padding is not None or tokenizer.truncation is not None:
        raise ValueError(
            f"the tokenizer pads or cuts texts (padding={tokenizer.padding}, truncation={tokenizer.truncation}), so "
            f"documents would not be their own tokens. Call its no_padding() and no_truncation()."
        )
    tokenizer.encode_special_tokens = True
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    unknown = tokenizer.token_to_id(getattr(tokenizer.model, "unk_token", None) or "<unk>")
    length = 1 + max((len(e.ids) for e in encodings), default=0)
    ids = torch.full((len(encodings), length), PAD_ID)
    labels = torch.full((len(encodings), length), IGNORE)
    for row, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
        n, name = len(encoding.ids), names[row] if names else f"text {row}"
        if n == 0:
            raise ValueError(f"{name} is empty: {text!r}. Every document and query needs at least one token.")
        if n + 1 > context:
            raise ValueError(
                f"{name} has {n} tokens and one boundary, more than the context of {context}: {text[:60]!r}... "
                f"Shorten it or raise model.context."
            )
        if unknown is not None and unknown in encoding.ids:
            word = text[slice(*encoding.offsets[encoding.ids.index(unknown)])]
            raise ValueError(f"{name} holds {word!r}, which the closed vocabulary lacks: {text[:60]!r}.")
        ids[row, 1 : n + 1] = torch.tensor(encoding.ids)
        start = 0
        if targets is not None:
            begin = len(text) - len(targets[row])
            # A token that starts before the target but ends inside it belongs to the target (a leading space).
            start = next((i for i, (_, end) in enumerate(encoding.offsets) if end > begin), None)
            if not targets[row].strip() or text[begin:] != targets[row] or start is None:
                raise ValueError(
                    f"{names[row] if names else f'query {row}'} has no target tokens: its target {targets[row]!r} must "
                    f"be the non-empty end of {text!r}."
                )
        labels[row, 1 + start : n + 1] = ids[row, 1 + start : n + 1]
    if encodings:
        ids[:, 0] = boundary_id(tokenizer)
    return {"input_ids": ids, "labels": labels, "text": list(texts)}


def is_sequence(batch: Examples) -> bool:
    """Whether these are sequences with a label for every token; a classifier of texts has one label an example."""
    ids, labels = batch.get("input_ids"), batch.get("labels")
    return isinstance(ids, Tensor) and isinstance(labels, Tensor) and labels.shape == ids.shape


def trim(batch: Examples) -> Examples:
    """Cut the columns that are padding in the whole batch (a third of the work in a mixed batch).

    Padding is what lies behind every example's last target and, where there is an attention mask, outside of it. What
    is not a sequence stays as it is.
    """
    if not is_sequence(batch):
        return batch
    real, mask, width = real_tokens(batch), batch.get("attention_mask"), batch["input_ids"].shape[1]
    if isinstance(mask, Tensor) and mask.shape == real.shape:
        real = real | (mask != 0)
    length = int(real.any(0).nonzero().max()) + 1
    return {k: v[:, :length] if isinstance(v, Tensor) and v.shape[1:2] == (width,) else v for k, v in batch.items()}


def real_tokens(batch: Examples) -> Tensor:
    """[N, T] bool, true up to each example's last target; what follows is padding, whatever id it carries.

    Of examples that are not sequences (a classifier has one label each): [N, 1], all true.
    """
    if not is_sequence(batch):
        return torch.ones(n_examples(batch), 1, dtype=torch.bool)
    return (batch["labels"] != IGNORE).flip(1).cummax(1).values.flip(1)
