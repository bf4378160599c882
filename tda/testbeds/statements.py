"""The language of the `people` testbed: facts, their wordings, and reading them back.

A *fact* is a triple ``entity|attribute|value``. Every attribute has six wordings; the first five end in the value, so
that it can be predicted from everything before it. The words lie in ``data/sources/people.yaml``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import yaml
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from tda import lm

PAD, BOS, UNK = "<pad>", "<bos>", "<unk>"

_WORDS = yaml.safe_load((Path(__file__).parents[2] / "data/sources/people.yaml").read_text(encoding="utf-8"))
FIRST, LAST = _WORDS["first"].split(), _WORDS["last"].split()
VALUES: dict[str, list[str]] = {attribute: values.split() for attribute, values in _WORDS["values"].items()}
WORDINGS: dict[str, list[str]] = _WORDS["wordings"]
ENDS_IN_VALUE = range(5)
_PARTS = {a: {"who": r"(?P<who>\S+?(?: \S+?)?)", "value": f"(?P<value>{'|'.join(VALUES[a])})"} for a in WORDINGS}
PATTERNS = [(a, re.compile(wording.format(**_PARTS[a]))) for a, wordings in WORDINGS.items() for wording in wordings]

# A register opens the document; it carries no fact. An edit replaces one word by another that no wording uses.
REGISTERS = {"plain": "", "gazette": "the gazette reports :", "letter": "my dear friend ,", "notes": "short note :"}
EDITS = {":": ";", "the": "this", "a": "one", "in": "inside", "as": "like", "at": "near", "from": "via"}
UNEDIT = {edit: word for word, edit in EDITS.items()}
PRONOUNS = ("she", "he")


def fact_id(entity: str, attribute: str, value: str) -> str:
    """The triple as one string, ``entity|attribute|value``."""
    return f"{entity}|{attribute}|{value}"


def sentence(who: str, attribute: str, wording: int, value: str) -> str:
    """One statement, e.g. ``sentence("Abra Bolt", "pet", 0, "newt")`` -> ``"Abra Bolt keeps a pet newt ."``."""
    return WORDINGS[attribute][wording].format(who=who, value=value) + " ."


def parse(text: str) -> list[tuple[str, str, str]]:
    """The facts that a text states, read back from its words: ``[(who, attribute, value), ...]``. A pronoun counts as
    the last person named ("" before any name), and the words of the one-word edits as the words they replace.
    """
    found, last = [], ""
    for raw in text.split(" ."):
        words = " ".join(UNEDIT.get(word, word) for word in raw.split())
        for opening in REGISTERS.values():
            if opening and words.startswith(opening):
                words = words[len(opening) :].strip()
        for attribute, pattern in PATTERNS:
            if match := pattern.fullmatch(words):
                last = last if match["who"] in PRONOUNS else match["who"]
                found.append((last, attribute, match["value"]))
    return found


def tokenizer() -> Tokenizer:
    """Word-level tokenizer over the closed vocabulary of the generator (answers are single tokens)."""
    texts = [sentence(who, a, w, v) for who in PRONOUNS for a in WORDINGS for w in range(6) for v in VALUES[a]]
    return closed_vocabulary([*texts, *REGISTERS.values(), *EDITS.values(), *FIRST, *LAST])


def closed_vocabulary(texts: Iterable[str]) -> Tokenizer:
    """Word-level tokenizer over the words of ``texts``, in alphabetical order behind padding, boundary and unknown."""
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {token: i for i, token in enumerate([PAD, BOS, UNK, *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    made.decoder = decoders.WordPiece(prefix="\x00", cleanup=False)  # joins tokens with single spaces
    made.add_special_tokens([PAD, BOS, UNK])
    return made


def generated_facts(testbed, model, params, wanted: int, rng) -> tuple[list[dict], dict]:
    """Let the model say something about each person; keep sentences that state one fact and end in its value."""
    tokenizer, stop = testbed.tokenizer, testbed.tokenizer.token_to_id(".")
    stated = {fact for facts in testbed.documents["facts"] for fact in facts}
    entities = sorted(set(testbed.documents["entity"]))
    found, seen = [], set()
    counts = {"drawn": 0, "not_one_fact_at_the_end": 0, "no_stating_document": 0, "repeated": 0}
    for entity in (entities[i] for _ in range(3) for i in rng.permutation(len(entities))):
        if len(found) == wanted:
            break
        counts["drawn"] += 1
        prompt = [lm.boundary_id(tokenizer), *tokenizer.encode(entity, add_special_tokens=False).ids]
        new = lm.generate(model, params, prompt, 24, rng, stop=(stop,))
        text = f"{entity} {tokenizer.decode(new)}".removesuffix(" .").strip()
        facts = parse(text)
        if len(facts) != 1 or facts[0][0] != entity or not text.endswith(f" {facts[0][2]}"):
            counts["not_one_fact_at_the_end"] += 1
        elif fact_id(*facts[0]) not in stated:
            counts["no_stating_document"] += 1
        elif text in seen:
            counts["repeated"] += 1
        else:
            seen.add(text)
            _, attribute, value = facts[0]
            row = {"query_id": f"generated-{len(found):03d}", "query_set": "generated", "prompt": entity, "text": text}
            found.append(row | {"target": f" {value}", "entity": entity, "attribute": attribute, "value": value})
    return found, counts
