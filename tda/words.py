"""Words in any script: what lexical methods compare, and where a query may be cut."""

from __future__ import annotations

import re
import unicodedata
from functools import cache
from itertools import groupby

# Scripts that are written without spaces: Thai, Lao, Myanmar, Khmer; Han, kana and their iteration marks.
UNSPACED = (
    (0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3005, 0x3007), (0x3041, 0x30FF), (0x31F0, 0x31FF),
    (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xAA60, 0xAA7F), (0xF900, 0xFAFF), (0x1B000, 0x1B16F), (0x20000, 0x323AF),
)  # fmt: skip


@cache
def kind(character: str) -> str:
    """``word`` for a letter, digit or mark, ``unspaced`` for those of scripts without spaces, else empty."""
    if not character.isalnum() and not mark(character):
        return ""
    return "unspaced" if any(low <= ord(character) <= high for low, high in UNSPACED) else "word"


def mark(character: str) -> bool:
    """Whether a character is a mark on the one before it, such as an accent or a vowel sign."""
    return unicodedata.category(character)[0] == "M"


def words(text: str) -> list[str]:
    """Lower-case runs of letters and digits; of scripts without spaces, all pairs of neighbouring characters, which is
    how Lucene indexes them without a dictionary (a run of one character is a word). Widths and accents are composed
    first (NFKC), so that two spellings of one letter are one.
    """
    if text.isascii():
        return re.findall(r"[a-z0-9]+", text.lower())
    found = []
    for what, run in groupby(unicodedata.normalize("NFKC", text).lower(), kind):
        run = "".join(run)
        if what == "unspaced":
            found += [run[i : i + 2] for i in range(max(1, len(run) - 1))]
        elif what:
            found.append(run)
    return found
