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
from collections import defaultdict
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from tda.testbeds.cutting import split_prompt, train_bpe
from tda.testbeds.duplicates import OVERLAP, SHINGLE, clusters, near_duplicates
from tda.testbeds.language import Language
from tda.testbeds.modality import kind

SOURCES = Path(__file__).resolve().parents[2] / "data" / "sources"
PROMPT_TOKENS = 20  # where a query is cut, to the nearest start of a word

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
        initial = re.search(r"\b[A-HJ-Z]\.$", last)
        if last.lower() not in ABBREVIATIONS and not initial:
            spans.append((start, match.start() + len(match[0].rstrip())))
            start = match.end()
    return [*spans, (start, len(text))] if start < len(text) else spans


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
                passages.append(_Passage(entry["author"], entry["work"], start, text[start:end], total))
                i = j
            else:
                i += 1
    return [passages[k] for k in rng.permutation(len(passages))]


def _evenly(works: list[list[_Passage]]) -> list[_Passage]:
    """One passage of each work in turn until all are used."""
    return [p for turn in zip_longest(*works) for p in turn if p is not None]


def build(settings: dict, seed: int, sources: Path = SOURCES, tokenizer: Tokenizer | None = None) -> dict:
    """`documents`, `probes`, `tokenizer` and `report`: the first `authors` authors of the index, cut into passages.

    `settings`: authors, passages (training, per author), held_out and unseen (queries, per author),
    tokens_min and tokens_max (length of a passage), vocabulary. The tokeniser is trained on the whole text
    of the chosen authors' seen works, unless one is given. Training passages and queries are spread evenly
    over an author's works. A candidate query whose `near_duplicates` overlap with a training passage is at least 0.1 is
    dropped and the next one taken; near-duplicates within training stay, get a common `group`, and are
    listed in the report. The id of a row names the work and the character where its text begins. Raises ValueError for
    more than the sources hold (with the numbers available), and for a source file that is missing or changed.
    """
    s, entries = settings, read_sources(sources)
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
        "tokens": {
            "training": sum(lengths),
            "shortest": min(lengths),
            "longest": max(lengths),
            "mean": round(sum(lengths) / len(lengths), 2),
        },
        "sources": {e["path"]: e["sha256"] for e in entries},
    }
    documents = [_document(p, group) for p, group in zip(training, clusters(len(training), pairs), strict=True)]
    cut = min(PROMPT_TOKENS, s["tokens_min"] // 2)
    probes = [_probe(p, of, tokenizer, cut) for p, of in asked]
    return {"documents": documents, "probes": probes, "tokenizer": tokenizer, "report": report}


def _document(passage: _Passage, group: str) -> dict:
    row = {"doc_id": passage.id, "text": passage.text, "entity": passage.author, "facts": [], "template": ""}
    row |= {"style": passage.author, "group": group, "planted": "", "work": passage.work}
    return row | {"tokens": passage.tokens}


def _probe(passage: _Passage, of: str, tokenizer: Tokenizer, cut: int) -> dict:
    prompt, target = split_prompt(passage.text, tokenizer, cut)
    row = {"query_id": passage.id, "author": passage.author, "entity": passage.author, "work": passage.work}
    return row | {"kind": of, "prompt": prompt, "target": target, "text": passage.text, "tokens": passage.tokens}
