"""Texts as tensors of tokens: a boundary, the tokens, padding on the right, and labels where something is predicted."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from tda.output_loss import IGNORE
from tda.saved import longest_context
from tda.task import Examples, chunks, n_examples, tensors

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
    text is text. ``names`` are what errors call the texts. Raises ``ValueError`` for an empty text, one longer than the
    context, a word outside a closed vocabulary, a query without target tokens, and a tokenizer that pads or cuts.
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


def check_examples(model: torch.nn.Module, examples: Examples, what: str) -> None:
    """Refuse examples that the loss of a language model would read as something else than they are. ``labels_<name>``
    (of another output) may stand beside ids, labels and a mask.
    """
    columns = {k: v for k, v in tensors(examples).items() if not k.startswith("labels_")}
    if lists := sorted({"attention_mask", "position_ids", "token_type_ids"} & set(examples) - set(columns)):
        raise ValueError(f"{what}: {lists} are lists; give them as tensors [N, T], or leave them out.")
    if missing := [k for k in ("input_ids", "labels") if k not in columns]:
        kinds = {k: type(v).__name__ for k, v in examples.items()}
        raise ValueError(f"{what}: {missing} must be tensors [N, T]; the columns are {kinds}.")
    if foreign := sorted(set(columns) - {"input_ids", "labels", "attention_mask"}):
        raise ValueError(
            f"{what}: the loss of a language model reads input_ids and labels, not {foreign}. Remove these columns, or "
            f"write a loss that reads them."
        )
    ids, labels, vocabulary = columns["input_ids"], columns["labels"], model.get_input_embeddings().weight.shape[0]
    if ids.dim() != 2 or labels.shape != ids.shape or {ids.dtype, labels.dtype} != {torch.int64}:
        raise ValueError(
            f"{what}: input_ids are {ids.dtype} {tuple(ids.shape)} and labels {labels.dtype} {tuple(labels.shape)}; "
            f"both must be int64 [N, T]. Texts with one label each need a loss of their own."
        )
    mask = columns.get("attention_mask", torch.ones_like(ids)) != 0
    if mask.shape != ids.shape:
        raise ValueError(f"{what}: attention_mask has shape {tuple(mask.shape)}, input_ids {tuple(ids.shape)}.")
    before, after = labels[:, :-1] != IGNORE, labels[:, 1:] != IGNORE
    if (labels[:, :-1] == ids[:, 1:])[before].all() and not (labels[:, 1:] == ids[:, 1:])[after].all() and before.any():
        raise ValueError(
            f"{what}: labels are input_ids moved by one, and the loss moves them itself. Give labels equal to the ids "
            f"where there is a target."
        )
    longest = int(min(longest_context(model), ids.shape[1]))
    problems = {
        f"hold ids that are no tokens of the model (0 to {vocabulary - 1})": (ids < 0) | (ids >= vocabulary),
        f"hold labels that are neither tokens (0 to {vocabulary - 1}) nor {IGNORE}, the mark of what is no target": (
            (labels != IGNORE) & ((labels < 0) | (labels >= vocabulary))
        ),
        "are padded on the left or in their midst; set padding_side='right' (the mask must be ones, then zeros)": (
            mask[:, 1:] & ~mask[:, :-1]
        ),
        f"have targets where attention_mask is 0; mark what is no target by {IGNORE}": ~mask & (labels != IGNORE),
        f"have no target tokens after their first; give each at least one label other than {IGNORE}": (
            (labels[:, 1:] == IGNORE).all(1, keepdim=True)
        ),
        f"are longer than the model's context of {longest}; shorten them": mask[:, longest:],
    }
    for problem, bad in problems.items():
        if bad.any():
            raise ValueError(f"{what}: rows {torch.nonzero(bad.any(1)).flatten()[:5].tolist()} {problem}.")


def is_sequence(batch: Examples) -> bool:
    """Whether these are sequences with a label for every token; a classifier of texts has one label an example."""
    ids, labels = batch.get("input_ids"), batch.get("labels")
    return isinstance(ids, Tensor) and isinstance(labels, Tensor) and labels.shape == ids.shape


def alike(examples: Examples, size: int) -> Iterator[np.ndarray]:
    """Positions of all examples in chunks of at most ``size``, short texts together: what is padded is computed, too.
    Examples without tokens keep their order.
    """
    order = real_tokens(examples).sum(1).argsort(stable=True).numpy()
    return (order[part] for part in chunks(len(order), size))


def trim(batch: Examples) -> Examples:
    """Cut the columns that are padding in the whole batch: behind every example's last target and, where there is an
    attention mask, outside of it. What is not a sequence stays as it is.
    """
    if not is_sequence(batch):
        return batch
    real, mask, width = real_tokens(batch), batch.get("attention_mask"), batch["input_ids"].shape[1]
    if isinstance(mask, Tensor) and mask.shape == real.shape:
        real = real | (mask != 0)
    length = int(real.any(0).nonzero().max()) + 1
    return {k: v[:, :length] if isinstance(v, Tensor) and v.shape[1:2] == (width,) else v for k, v in batch.items()}


def real_tokens(batch: Examples) -> Tensor:
    """[N, T] bool, true up to each example's last target; [N, 1], all true, of examples that are not sequences."""
    if not is_sequence(batch):
        return torch.ones(n_examples(batch), 1, dtype=torch.bool)
    return (batch["labels"] != IGNORE).flip(1).cummax(1).values.flip(1)
