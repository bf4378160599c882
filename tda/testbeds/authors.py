"""The `authors` testbed: real public-domain prose, one passage = one document, the author is the truth.

`data/sources/index.json` lists the works; "seen" works lend training passages and held-out queries, "unseen" works only
queries. Passages are disjoint runs of whole sentences inside one paragraph. "Finds the author" and "is causal" are two
claims: `entity` says who wrote a passage, only retraining says which passages lowered a loss.
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
from tokenizers import Tokenizer

from tda.testbeds.cutting import split_prompt, train_bpe
from tda.testbeds.language import Language
from tda.testbeds.modality import kind

SOURCES = Path(__file__).resolve().parents[2] / "data" / "sources"
PROMPT_TOKENS = 20  # where a query is cut, to the nearest start of a word
SHINGLE = 8  # words
OVERLAP = 0.1  # from this share of common shingles on, two passages are near-duplicates

# A full stop after these does not end a sentence ("n.", "v.t." follow Bierce's headwords).
ABBREVIATIONS = set(
    "mr. mrs. dr. st. gen. hon. rev. messrs. col. lieut. no. lib. i.e. e.g. viz. n. n.pl. v. v.t. v.i. adj. adv. p.p. "
    "pp. pro. prep. x.".split()
)
SENTENCE_END = re.compile(r"[.!?]['\")]*\s+(?=['\"(]*[A-Z0-9])")


@kind("authors")
class Authors(Language):
    """The author is the entity of a passage; works that are not trained on lend queries, too."""

    def corpus(self, testbed, given: Tokenizer | None) -> dict:
        return build(testbed.settings["corpus"], testbed.config["seed"], tokenizer=given)

    def source(self, corpus: dict) -> Path:
        return SOURCES / "index.json"


@dataclass(frozen=True)
class _Passage:
    author: str
    work: str
    start: int  # its first character in the text of the work
    text: str
    tokens: int

    @property
    def id(self) -> str:
        return f"{self.work}_{self.start:06d}"

    def document(self, group: str) -> dict:
        row = {"doc_id": self.id, "text": self.text, "entity": self.author, "facts": [], "template": ""}
        return row | {"style": self.author, "group": group, "planted": "", "work": self.work, "tokens": self.tokens}

    def probe(self, of: str, tokenizer: Tokenizer, cut: int) -> dict:
        prompt, target = split_prompt(self.text, tokenizer, cut)
        row = {"query_id": self.id, "author": self.author, "entity": self.author, "work": self.work, "kind": of}
        return row | {"prompt": prompt, "target": target, "text": self.text, "tokens": self.tokens}


def read_sources(folder: Path = SOURCES) -> list[dict]:
    """Entries of `index.json` in order, each with its "text". A missing or changed file is a ValueError."""
    entries = json.loads((folder / "index.json").read_text(encoding="utf-8"))
    for entry in entries:
        path = folder / entry["path"]
        found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "no file"
        if found != entry["sha256"]:
            raise ValueError(
                f"{path}: sha256 is {found}, index.json says {entry['sha256']}. The committed text was changed or "
                f"lost: restore it with git, or rebuild it with workflow/scripts/extract_sources.py."
            )
        entry["text"] = path.read_bytes().decode("utf-8")
    return entries


def sentences(text: str) -> list[tuple[int, int]]:
    """Spans (start, end) of the sentences of one paragraph, without the white space between them."""
    spans, start = [], 0
    for match in SENTENCE_END.finditer(text):
        last = text[start : match.start() + 1].rsplit(None, 1)[-1].lstrip("'\"(")
        if last.lower() not in ABBREVIATIONS and not re.search(r"\b[A-HJ-Z]\.$", last):  # nor after an initial
            spans.append((start, match.start() + len(match[0].rstrip())))
            start = match.end()
    return [*spans, (start, len(text))] if start < len(text) else spans


def _cut(entry: dict, tokenizer: Tokenizer, low: int, high: int, rng: np.random.Generator) -> list[_Passage]:
    """Disjoint passages of `low`..`high` tokens of one work, shuffled; each one's wanted length is drawn."""
    text, passages, paragraphs, at = entry["text"], [], [], 0
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
                passages.append(_Passage(entry["author"], entry["work"], start, text[start:end], total))
                i = j
            else:
                i += 1
    return [passages[k] for k in rng.permutation(len(passages))]


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


def _clusters(n: int, pairs: list[tuple[int, int, float]]) -> list[str]:
    """Names of the connected components of size two or more, "" for the rest."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    i, j = np.array([pair[:2] for pair in pairs], int).reshape(-1, 2).T
    _, component = connected_components(coo_array((np.ones(len(i)), (i, j)), (n, n)), directed=False)
    several = np.flatnonzero(np.bincount(component) > 1)
    names = {c: f"near_{number}" for number, c in enumerate(several)}
    return [names.get(c, "") for c in component]


def build(settings: dict, seed: int, sources: Path = SOURCES, tokenizer: Tokenizer | None = None) -> dict:
    """`documents`, `probes`, `tokenizer` and `report`: the first `authors` authors of the index, cut into passages.

    The tokeniser is trained on the whole text of the chosen authors' seen works, unless one is given. Training passages
    and queries are spread evenly over an author's works. A candidate query whose `near_duplicates` overlap with a
    training passage is at least 0.1 is dropped and the next one taken; near-duplicates within training stay, get a
    common `group`, and are listed in the report. Raises ValueError for more than the sources hold (with the numbers
    available), and for a source file that is missing or changed.
    """
    s, entries = settings, read_sources(sources)
    authors = list(dict.fromkeys(e["author"] for e in entries))
    if s["authors"] > (n := len(authors)):
        raise ValueError(f"authors is {s['authors']}, but the sources hold {n}: {', '.join(authors)}. Lower authors.")
    authors = authors[: s["authors"]]
    entries = [e for e in entries if e["author"] in authors]
    tokenizer = tokenizer or train_bpe([e["text"] for e in entries if e["seen"]], s["vocabulary"])
    rng = np.random.default_rng(seed)
    works = {e["work"]: _cut(e, tokenizer, s["tokens_min"], s["tokens_max"], rng) for e in entries}

    def evenly(author: str, seen: bool) -> list[_Passage]:
        """One passage of each work in turn until all are used."""
        mine = [works[e["work"]] for e in entries if e["author"] == author and e["seen"] is seen]
        return [p for turn in zip_longest(*mine) for p in turn if p is not None]

    seen, unseen = ({a: evenly(a, flag) for a in authors} for flag in (True, False))
    training = [p for a in authors for p in seen[a][: s["passages"]]]
    pools = {"held_out": {a: seen[a][s["passages"] :] for a in authors}, "unseen": unseen}
    candidates = [p for pool in pools.values() for a in authors for p in pool[a]]
    worst: dict[str, float] = defaultdict(float)
    for i, _, overlap in near_duplicates([p.text for p in candidates], [p.text for p in training]):
        worst[candidates[i].id] = max(worst[candidates[i].id], overlap)
    asked, dropped = [], dict.fromkeys(authors, 0)
    for part, pool in pools.items():
        for a in authors:
            usable = [p for p in pool[a] if worst[p.id] < OVERLAP]
            taken = usable[: s[part]]
            if len(seen[a]) < s["passages"] or len(taken) < s[part]:
                raise ValueError(
                    f"{a}: passages {s['passages']} + held_out {s['held_out']} and unseen {s['unseen']} were asked; at "
                    f"{s['tokens_min']}-{s['tokens_max']} tokens the seen works hold {len(seen[a])} passages and the "
                    f"unseen works {len(unseen[a])} ({len(usable)} of {len(pool[a])} {part} candidates are no "
                    f"near-duplicates of training). Ask for fewer, change the token range, or take fewer authors."
                )
            asked += [(p, "unseen_work" if part == "unseen" else part) for p in taken]
            last = pool[a].index(taken[-1]) if taken else 0
            dropped[a] += sum(worst[p.id] >= OVERLAP for p in pool[a][:last])

    training = [training[k] for k in rng.permutation(len(training))]
    pairs = [(i, j, o) for i, j, o in near_duplicates([p.text for p in training]) if o >= OVERLAP]
    lengths = [p.tokens for p in training]
    tokens = {"training": sum(lengths), "shortest": min(lengths), "longest": max(lengths)}
    report = {
        "shingle_words": SHINGLE,
        "overlap_threshold": OVERLAP,
        "training_exact_duplicates": len(training) - len({p.text for p in training}),
        "training_near_duplicates": len(pairs),
        "training_pairs": [[training[i].id, training[j].id, round(o, 4)] for i, j, o in pairs],
        "queries_dropped": dropped,
        "queries_dropped_total": sum(dropped.values()),
        "queries_sharing_any_shingle": sum(worst[p.id] > 0 for p, _ in asked),
        "available": {a: {"seen": len(seen[a]), "unseen": len(unseen[a])} for a in authors},
        "tokens": tokens | {"mean": round(sum(lengths) / len(lengths), 2)},
        "sources": {e["path"]: e["sha256"] for e in entries},
    }
    documents = [p.document(group) for p, group in zip(training, _clusters(len(training), pairs), strict=True)]
    cut = min(PROMPT_TOKENS, s["tokens_min"] // 2)
    probes = [p.probe(of, tokenizer, cut) for p, of in asked]
    return {"documents": documents, "probes": probes, "tokenizer": tokenizer, "report": report}
