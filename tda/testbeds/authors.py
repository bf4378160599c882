"""The `authors` testbed: real public-domain prose, one passage = one document, the author is the truth.

The committed text lies in `data/sources/` (see SOURCES.md there). `index.json` lists the works; "seen"
works lend training passages and held-out queries, "unseen" works lend only queries. Passages are disjoint
runs of whole sentences inside one paragraph, so no passage crosses a paragraph or a work, and none holds a
line break.

"Finds the author" and "is causal" are two claims: `entity` says who wrote a passage, only retraining says
which passages lowered a loss.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from tda.words import kind as kind_of
from tda.words import mark

SOURCES = Path(__file__).resolve().parents[2] / "data" / "sources"
DEFAULTS = {
    "authors": 8,
    "passages": 100,
    "held_out": 12,
    "unseen": 6,
    "tokens_min": 60,
    "tokens_max": 120,
    "vocabulary": 1024,
}
SPECIALS = ["<pad>", "<eos>"]  # ids 0 and 1
SMALLEST_VOCABULARY = 256 + len(SPECIALS)  # the bytes and the special tokens
PROMPT_TOKENS = 20  # where a query is cut, to the nearest start of a word
SHINGLE = 8  # words
OVERLAP = 0.1  # from this share of common shingles on, two passages are near-duplicates

# A full stop after these does not end a sentence ("n.", "v.t." follow Bierce's headwords).
ABBREVIATIONS = {
    "mr.",
    "mrs.",
    "dr.",
    "st.",
    "gen.",
    "hon.",
    "rev.",
    "messrs.",
    "col.",
    "lieut.",
    "no.",
    "lib.",
    "i.e.",
    "e.g.",
    "viz.",
    "n.",
    "n.pl.",
    "v.",
    "v.t.",
    "v.i.",
    "adj.",
    "adv.",
    "p.p.",
    "pp.",
    "pro.",
    "prep.",
    "x.",
}
SENTENCE_END = re.compile(r"[.!?]['\")]*\s+(?=['\"(]*[A-Z0-9])")


@dataclass(frozen=True)
class AuthorsCorpus:
    """`documents`, `probes` (lists of rows), tokeniser, near-duplicate report, and where each row lies.

    `spans[doc_id or query_id] = (work, start, end)`: `text[start:end]` of the work's file is the row's text.
    """

    documents: list[dict]
    probes: list[dict]
    tokenizer: Tokenizer
    report: dict
    spans: dict[str, tuple[str, int, int]]


@dataclass(frozen=True)
class _Passage:
    author: str
    work: str
    start: int
    end: int
    text: str
    tokens: int

    @property
    def id(self) -> str:
        return f"{self.work}_{self.start:06d}"


def train_bpe(texts: list[str], vocabulary: int, at_most: bool = False) -> Tokenizer:
    """Byte-level BPE with `vocabulary` entries, "<pad>" = 0 and "<eos>" = 1, trained on `texts`.

    No prefix space and no unknown token: every string is encoded, special tokens written in a text as the
    characters they are, and decoding gives the same string back. The same texts give the same tokeniser. Raises
    ValueError when `vocabulary` is below 258 (256 bytes and 2 special tokens) or, unless `at_most`, above
    what the texts support (every merge must occur at least twice).
    """
    if vocabulary < SMALLEST_VOCABULARY:
        raise ValueError(
            f"vocabulary is {vocabulary}; a byte-level vocabulary needs at least "
            f"{SMALLEST_VOCABULARY} entries (256 bytes and {len(SPECIALS)} special tokens). "
            "Raise vocabulary."
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        special_tokens=SPECIALS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.encode_special_tokens = True
    if tokenizer.get_vocab_size() < vocabulary and not at_most:
        raise ValueError(
            f"vocabulary is {vocabulary}, but {sum(map(len, texts)):,} characters of text "
            f"support only {tokenizer.get_vocab_size()} entries. Lower vocabulary or add text."
        )
    return tokenizer


def read_sources(folder: Path = SOURCES) -> list[dict]:
    """Entries of `index.json` in order, each with its "text". A missing or changed file is a ValueError."""
    entries = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    for entry in entries:
        path = folder / entry["path"]
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        if found != entry["sha256"]:
            raise ValueError(
                f"{path}: sha256 is {found}, index.json says {entry['sha256']}. The committed "
                "text was changed or lost: restore it with git, or rebuild it with "
                "workflow/scripts/extract_sources.py."
            )
        entry["text"] = path.read_bytes().decode("utf-8")
    return entries


def sentences(text: str) -> list[tuple[int, int]]:
    """Spans (start, end) of the sentences of one paragraph, without the white space between them."""
    spans, start = [], 0
    for match in SENTENCE_END.finditer(text):
        last = text[start : match.start() + 1].rsplit(None, 1)[-1].lstrip("'\"(")
        initial = re.search(r"\b[A-HJ-Z]\.$", last)
        if last.lower() not in ABBREVIATIONS and not initial:
            spans.append((start, match.start() + len(match[0].rstrip())))
            start = match.end()
    return [*spans, (start, len(text))] if start < len(text) else spans


def near_duplicates(texts: list[str], against: list[str] | None = None) -> list[tuple[int, int, float]]:
    """Pairs of texts that share runs of 8 words, as (i, j, overlap), through an index from shingle to texts.

    overlap(a, b) = |A & B| / min(|A|, |B|) in (0, 1], with A, B the sets of 8-word shingles (lower case, no
    punctuation); 1 for copies. Without `against`: pairs i < j inside `texts`; with it, j indexes `against`.
    """
    sets = [_shingles(t) for t in texts]
    others = sets if against is None else [_shingles(t) for t in against]
    index = defaultdict(list)
    for j, shingles in enumerate(others):
        for shingle in shingles:
            index[shingle].append(j)
    pairs, within = [], against is None
    for i, shingles in enumerate(sets):
        shared = Counter(j for shingle in shingles for j in index.get(shingle, ()) if j > i or not within)
        pairs += [(i, j, n / min(len(shingles), len(others[j]))) for j, n in sorted(shared.items())]
    return pairs


def _shingles(text: str) -> set[tuple[str, ...]]:
    words = re.findall(r"[a-z0-9']+", text.lower())
    return {tuple(words[k : k + SHINGLE]) for k in range(max(1, len(words) - SHINGLE + 1))}


def _cut(entry: dict, tokenizer: Tokenizer, low: int, high: int, rng: np.random.Generator) -> list[_Passage]:
    """Disjoint passages of `low`..`high` tokens of one work, shuffled; each one's wanted length is drawn."""
    text, passages, at = entry["text"], [], 0
    paragraphs = []
    for paragraph in text.rstrip("\n").split("\n\n"):
        paragraphs.append([(at + a, at + b) for a, b in sentences(paragraph)])
        at += len(paragraph) + 2
    flat = [span for paragraph in paragraphs for span in paragraph]
    # The pre-tokeniser always splits before a space, so lengths add up: a first sentence, then " sentence"s.
    first, later = (
        iter(len(e.ids) for e in tokenizer.encode_batch([lead + text[a:b] for a, b in flat], add_special_tokens=False))
        for lead in ("", " ")
    )
    for spans in paragraphs:
        heads, tails, i = [next(first) for _ in spans], [next(later) for _ in spans], 0
        while i < len(spans):
            wanted, total, j = rng.integers(low, high + 1), heads[i], i + 1
            while j < len(spans) and total < wanted and total + tails[j] <= high:
                total, j = total + tails[j], j + 1
            if low <= total <= high:
                start, end = spans[i][0], spans[j - 1][1]
                passages.append(_Passage(entry["author"], entry["work"], start, end, text[start:end], total))
                i = j
            else:
                i += 1
    return [passages[k] for k in rng.permutation(len(passages))]


def _evenly(works: list[list[_Passage]]) -> list[_Passage]:
    """One passage of each work in turn until all are used."""
    return [p for turn in zip_longest(*works) for p in turn if p is not None]


def split_prompt(text: str, tokenizer: Tokenizer, tokens: int = PROMPT_TOKENS) -> tuple[str, str]:
    """(prompt, target) with prompt + target == text, cut before the word nearest to `tokens` tokens.

    In scripts without spaces every character counts as a word; a text of one word is cut inside it. A cut is
    always between tokens and between characters, and before a space no token changes on either side:
    encode(text) = encode(prompt) + encode(target). Raises ValueError where there is no such place.
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


def _settings(settings: dict) -> dict:
    given = {k: v for k, v in settings.items() if k != "kind"}
    if unknown := sorted(set(given) - set(DEFAULTS)):
        raise ValueError(f"unknown settings of an authors corpus: {unknown}; allowed are {sorted(DEFAULTS)}.")
    s = {**DEFAULTS, **given}
    for name, value in s.items():
        least = 0 if name in ("held_out", "unseen") else 1
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
            raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}.")
    if s["tokens_min"] >= s["tokens_max"]:
        raise ValueError(f"tokens_min {s['tokens_min']} must be smaller than tokens_max {s['tokens_max']}.")
    return s


def build(settings: dict, seed: int, sources: Path = SOURCES, tokenizer: Tokenizer | None = None) -> AuthorsCorpus:
    """Cut the first `authors` authors of the index into training passages and queries.

    `settings`: authors, passages (training, per author), held_out and unseen (queries, per author),
    tokens_min and tokens_max (length of a passage), vocabulary. The tokeniser is trained on the whole text
    of the chosen authors' seen works, unless one is given. Training passages and queries are spread evenly
    over an author's works. A candidate query whose `near_duplicates` overlap with a training passage is at least 0.1 is
    dropped and the next one taken; near-duplicates within training stay, get a common `group`, and are
    listed in the report. The same settings and seed give the same corpus. Raises ValueError for settings
    out of range, for more than the sources hold (with the numbers available), and for a source file that is
    missing or changed.
    """
    s = _settings(settings)
    entries = read_sources(sources)
    authors = list(dict.fromkeys(e["author"] for e in entries))
    if s["authors"] > len(authors):
        raise ValueError(
            f"authors is {s['authors']}, but the sources hold {len(authors)}: {', '.join(authors)}. Lower authors."
        )
    authors = authors[: s["authors"]]
    entries = [e for e in entries if e["author"] in authors]
    tokenizer = tokenizer or train_bpe([e["text"] for e in entries if e["seen"]], s["vocabulary"])
    rng = np.random.default_rng(seed)
    works = {e["work"]: _cut(e, tokenizer, s["tokens_min"], s["tokens_max"], rng) for e in entries}
    seen, unseen = (
        {a: _evenly([works[e["work"]] for e in entries if e["author"] == a and e["seen"] is flag]) for a in authors}
        for flag in (True, False)
    )

    training = [p for a in authors for p in seen[a][: s["passages"]]]
    pools = {"held_out": {a: seen[a][s["passages"] :] for a in authors}, "unseen": unseen}
    candidates = [p for pool in pools.values() for a in authors for p in pool[a]]
    worst: dict[str, float] = defaultdict(float)
    for i, _, overlap in near_duplicates([p.text for p in candidates], [p.text for p in training]):
        worst[candidates[i].id] = max(worst[candidates[i].id], overlap)
    chosen, dropped = {}, dict.fromkeys(authors, 0)
    for kind, pool in pools.items():
        for a in authors:
            usable = [p for p in pool[a] if worst[p.id] < OVERLAP]
            taken = usable[: s[kind]]
            if len(seen[a]) < s["passages"] or len(taken) < s[kind]:
                raise ValueError(
                    f"{a}: passages {s['passages']} + held_out {s['held_out']} and unseen {s['unseen']} were "
                    f"asked; at {s['tokens_min']}-{s['tokens_max']} tokens the seen works hold "
                    f"{len(seen[a])} passages and the unseen works {len(unseen[a])} ({len(usable)} of "
                    f"{len(pool[a])} {kind} candidates are no near-duplicates of training). "
                    "Ask for fewer, change the token range, or take fewer authors."
                )
            chosen[kind, a] = taken
            last = pool[a].index(taken[-1]) if taken else 0
            dropped[a] += sum(worst[p.id] >= OVERLAP for p in pool[a][:last])

    training = [training[k] for k in rng.permutation(len(training))]
    pairs = [(i, j, o) for i, j, o in near_duplicates([p.text for p in training]) if o >= OVERLAP]
    groups = _clusters(len(training), pairs)
    documents = [
        {
            "doc_id": p.id,
            "text": p.text,
            "entity": p.author,
            "facts": [],
            "template": "",
            "style": p.author,
            "group": group,
            "planted": "",
            "work": p.work,
            "tokens": p.tokens,
        }
        for p, group in zip(training, groups, strict=True)
    ]
    probes = []
    for (kind, author), taken in chosen.items():
        for p in taken:
            prompt, target = split_prompt(p.text, tokenizer, min(PROMPT_TOKENS, s["tokens_min"] // 2))
            probes.append(
                {
                    "query_id": p.id,
                    "author": author,
                    "entity": author,
                    "work": p.work,
                    "kind": "unseen_work" if kind == "unseen" else kind,
                    "prompt": prompt,
                    "target": target,
                    "text": p.text,
                    "tokens": p.tokens,
                }
            )
    everything = training + [p for taken in chosen.values() for p in taken]
    lengths = [p.tokens for p in training]
    report = {
        "shingle_words": SHINGLE,
        "overlap_threshold": OVERLAP,
        "training_exact_duplicates": len(training) - len({p.text for p in training}),
        "training_near_duplicates": len(pairs),
        "training_pairs": [[training[i].id, training[j].id, round(o, 4)] for i, j, o in pairs],
        "queries_dropped": dropped,
        "queries_dropped_total": sum(dropped.values()),
        "queries_sharing_any_shingle": sum(worst[p["query_id"]] > 0 for p in probes),
        "available": {a: {"seen": len(seen[a]), "unseen": len(unseen[a])} for a in authors},
        "tokens": {
            "training": sum(lengths),
            "shortest": min(lengths),
            "longest": max(lengths),
            "mean": round(sum(lengths) / len(lengths), 2),
        },
        "sources": {e["path"]: e["sha256"] for e in entries},
    }
    spans = {p.id: (p.work, p.start, p.end) for p in everything}
    return AuthorsCorpus(documents, probes, tokenizer, report, spans)


def _clusters(n: int, pairs: list[tuple[int, int, float]]) -> list[str]:
    """Names of the connected components of size two or more, "" for the rest."""
    parent = list(range(n))

    def root(k: int) -> int:
        while parent[k] != k:
            k = parent[k]
        return k

    for i, j, _ in pairs:
        a, b = sorted((root(i), root(j)))
        parent[b] = a
    sizes = Counter(root(k) for k in range(n))
    names = {r: f"near_{c}" for c, r in enumerate(r for r in sorted(sizes) if sizes[r] > 1)}
    return [names.get(root(k), "") for k in range(n)]
