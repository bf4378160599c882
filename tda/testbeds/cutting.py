"""Real text cut into tokens, and a passage cut into the prompt and the target of a query."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tda.words import kind as kind_of
from tda.words import mark

SPECIALS = ["<pad>", "<eos>"]  # ids 0 and 1
SMALLEST = 256 + len(SPECIALS)  # the bytes and the special tokens


def train_bpe(texts: list[str], vocabulary: int, at_most: bool = False, name: str = "vocabulary") -> Tokenizer:
    """Byte-level BPE with `vocabulary` entries, "<pad>" = 0 and "<eos>" = 1, trained on `texts`.

    No prefix space and no unknown token: every string is encoded, special tokens written in a text as the
    characters they are, and decoding gives the same string back. Raises ValueError, which calls it `name`, when
    `vocabulary` is below 258 or, unless `at_most`, above what the texts support (every merge occurs at least twice).
    """
    if vocabulary < SMALLEST:
        raise ValueError(
            f"{name} is {vocabulary}; a byte-level vocabulary needs at least {SMALLEST} entries (256 bytes and "
            f"{len(SPECIALS)} special tokens). Raise vocabulary."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet, size = pre_tokenizers.ByteLevel.alphabet(), {"vocab_size": vocabulary, "min_frequency": 2}
    trainer = trainers.BpeTrainer(**size, special_tokens=SPECIALS, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True
    if (size := tokenizer.get_vocab_size()) < vocabulary and not at_most:
        raise ValueError(
            f"{name} is {vocabulary}, but {sum(map(len, texts)):,} characters of text support only {size} entries. "
            f"Lower vocabulary to {size}, or add text."
        )
    return tokenizer


def split_prompt(text: str, tokenizer: Tokenizer, tokens: int) -> tuple[str, str]:
    """(prompt, target) with prompt + target == text, cut before the word nearest to `tokens` tokens.

    In scripts without spaces every character counts as a word; a text of one word is cut inside it. A cut is always
    between tokens and characters, and before a space encode(text) = encode(prompt) + encode(target). Raises ValueError
    where there is no such place.
    """
    offsets = tokenizer.encode(text, add_special_tokens=False).offsets
    places, words, end = {}, [], 0
    opens, closes = len(text) - len(text.lstrip()), len(text.rstrip())
    for k, (start, stop) in enumerate(offsets):
        if start >= end and opens < end < closes and not mark(text[end]):
            places[k] = end  # where the token before ends: the space belongs to the target
            words += [k] if text[end].isspace() or kind_of(text[end]) == "unspaced" else []
        end = max(end, stop)
    if not places:
        raise ValueError(f"{text!r} is a single token; a prompt and a target need at least two.")
    cut = places[min(words or places, key=lambda k: abs(k - tokens))]
    return text[:cut], text[cut:]
