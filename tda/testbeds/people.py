"""The `people` testbed: invented people, facts about them, and documents whose provenance is known by construction.

A *document* states a few facts of one person (:mod:`tda.testbeds.statements`), one sentence each. For each (person,
attribute) one of the wordings that end in the value is *held out*: no document about this person uses it, although
documents about other people do. The held-out sentences are the queries. On purpose people share names, values and
wordings; some documents never name their person, are copies or near-copies of another, or state a wrong value: the
``planted`` column says which.

Source of the design: bioS in *Physics of Language Models 3.1* (varied wordings make facts extractable).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

import numpy as np

from tda.testbeds import statements
from tda.testbeds.language import Language
from tda.testbeds.modality import kind
from tda.testbeds.statements import VALUES, fact_id, sentence


@kind("people")
class People(Language):
    """The main loss of a query is that of the whole sentence; it is asked only if the model knows the answer."""

    SECOND, MAIN, KNOWN_ONLY, UNIT = "answer", "text", True, "entity"
    generate = staticmethod(statements.generated_facts)

    def corpus(self, testbed, given) -> dict:
        return build(testbed.settings["corpus"], testbed.config["seed"])

    def relevance(self, testbed, rows: list[dict]) -> np.ndarray:
        """Documents that state the queried fact."""
        stated = [set(facts) for facts in testbed.documents["facts"]]
        return np.array([[_fact_of(row) in facts for facts in stated] for row in rows])

    def retrieval_measures(self, testbed) -> list[str]:
        recalls = [f"recall_at_{k}" for k in testbed.settings["evaluation"]["recall_k"]]
        return [*recalls, "mrr", "average_precision"]

    def groups(self, testbed, rows: list[dict]) -> list[dict[str, list[int]]]:
        return super().groups(testbed, rows, [_fact_of(row) for row in rows if row["attribute"]])


def _fact_of(row: dict) -> str:
    return fact_id(row["entity"], row["attribute"], row["value"])


@dataclass
class _Draft:
    """A document being written: facts [(attribute, value)] of one person, each in a wording."""

    name: str
    facts: list[tuple[str, str]]
    wordings: list[int]
    style: str
    text: str = ""
    planted: str = ""
    group: str = ""

    def row(self) -> dict:
        facts = [fact_id(self.name, a, v) for a, v in self.facts]
        template = "+".join(f"{a}:{w}" for (a, _), w in zip(self.facts, self.wordings, strict=True))
        row = {"text": self.text, "entity": self.name, "facts": facts, "template": template, "style": self.style}
        return row | {"group": self.group, "planted": self.planted, "work": ""}


class _World:
    """People, what is true of them, and which wordings their documents may use."""

    def __init__(self, settings: dict, rng: np.random.Generator):
        self.settings, self.rng = settings, rng
        self.attributes = list(VALUES)[: settings["attributes"]]
        self.names = names = _names(rng, settings["people"], settings["name_sharing"])
        self.pronoun = {name: statements.PRONOUNS[rng.integers(2)] for name in names}
        self.truth = {(n, a): VALUES[a][rng.integers(settings["values"])] for n in names for a in self.attributes}
        # Wordings are offset per person, so that a wording held out for one person is in use for others.
        count = min(5, settings["wordings"])
        places = ((i + j, n, a) for i, n in enumerate(names) for j, a in enumerate(self.attributes))
        self.held_out = {(n, a): place % count for place, n, a in places}

    def allowed(self, name: str, attribute: str) -> list[int]:
        return [w for w in range(self.settings["wordings"]) if w != self.held_out[name, attribute]]

    def write(self, draft: _Draft) -> str:
        parts = [statements.REGISTERS[draft.style]] if statements.REGISTERS[draft.style] else []
        for position, ((attribute, value), wording) in enumerate(zip(draft.facts, draft.wordings, strict=True)):
            later_pronoun = position > 0 and self.rng.random() < self.settings["pronoun_rate"]
            unnamed = later_pronoun or draft.planted == "pronoun"
            parts.append(sentence(self.pronoun[draft.name] if unnamed else draft.name, attribute, wording, value))
        return " ".join(parts)


def build(settings: dict, seed: int) -> dict:
    """``documents``, ``probes``, ``tokenizer`` and ``report`` from the ``corpus`` section of a testbed of kind
    ``people``. Raises ``ValueError`` for settings that ask for more than there is.
    """
    s, rng = settings, np.random.default_rng([seed, 71])
    ranges = {
        "attributes": (1, len(VALUES)),
        "values": (1, 20),
        "facts_per_document": (1, s["attributes"]),
        "wordings": (3 if s["paraphrases"] else 2, 6),  # one is held out, paraphrases need two
        "people": (1, len(statements.FIRST) * len(statements.LAST) // 2),
    }
    for name, (least, most) in ranges.items():
        if not least <= s[name] <= most:
            raise ValueError(f"people corpus: {name}={s[name]}; with these settings it must be {least} to {most}.")
    world = _World(s, rng)
    tilt = (1 + rng.permutation(s["people"])) ** -float(s["zipf"])
    counts = s["docs_min"] + np.rint((s["docs_max"] - s["docs_min"]) * tilt).astype(int)
    drafts = [draft for name, count in zip(world.names, counts, strict=True) for draft in _drafts(world, name, count)]
    drafts += _duplicates(world, drafts)
    documents = [{"doc_id": f"p{i:04d}", **drafts[j].row()} for i, j in enumerate(rng.permutation(len(drafts)))]
    shared = [any(set(n.split()) & set(m.split()) for m in world.names if m != n) for n in world.names]
    report = {"people": len(world.names), "documents": len(documents)}
    report |= {"planted": dict(sorted(Counter(draft.planted for draft in drafts).items()))}
    report |= {"people_sharing_a_name": sum(shared)}
    probes = _probes(world, drafts)
    return {"documents": documents, "probes": probes, "tokenizer": statements.tokenizer(), "report": report}


def _names(rng: np.random.Generator, people: int, sharing: float) -> list[str]:
    """Distinct full names; about a share ``sharing`` of the people take a first or last name already in use."""
    firsts, lasts = list(rng.permutation(statements.FIRST)), list(rng.permutation(statements.LAST))
    names: list[tuple[str, str]] = []
    while len(names) < people:
        if names and (rng.random() < sharing or not firsts or not lasts):
            first, last = names[rng.integers(len(names))]
            if rng.random() < 0.5:
                last = statements.LAST[rng.integers(len(statements.LAST))]
            else:
                first = statements.FIRST[rng.integers(len(statements.FIRST))]
        else:
            first, last = firsts.pop(), lasts.pop()
        if (first, last) not in names:
            names.append((first, last))
    return [" ".join(name) for name in names]


def _drafts(world: _World, name: str, count: int):
    """The documents of one person, some of them planted as contradictions or without a name."""
    s, rng, cycle, styles = world.settings, world.rng, [], list(statements.REGISTERS)
    for _ in range(count):
        # Cycle through shuffled attributes, so that every fact is stated about equally often.
        chosen: list[str] = []
        while len(chosen) < s["facts_per_document"]:
            if not set(cycle) - set(chosen):
                cycle += list(rng.permutation(world.attributes))
            chosen.append(next(a for a in cycle if a not in chosen))
            cycle.remove(chosen[-1])
        facts = [(a, world.truth[name, a]) for a in chosen]
        wordings = [int(rng.choice(world.allowed(name, a))) for a in chosen]
        draft = _Draft(name, facts, wordings, styles[rng.integers(len(styles))])
        draw = rng.random()
        if draw < s["contradictions"]:
            draft.planted, wrong = "contradiction", int(rng.integers(len(facts)))
            a, true = facts[wrong]
            others = [v for v in VALUES[a][: s["values"]] if v != true]
            facts[wrong] = (a, others[rng.integers(len(others))])
        elif draw < s["contradictions"] + s["pronoun_only"]:
            draft.planted = "pronoun"
        draft.text = world.write(draft)
        yield draft


def _duplicates(world: _World, drafts: list[_Draft]) -> list[_Draft]:
    """Copies of some plain documents: exact, with one word changed, or with the same facts in other words."""
    s, rng, copies = world.settings, world.rng, []
    plain = [draft for draft in drafts if not draft.planted and set(draft.text.split()) & set(statements.EDITS)]
    sorts = ["exact"] * s["exact_copies"] + ["one_word"] * s["one_word_edits"] + ["paraphrase"] * s["paraphrases"]
    if len(sorts) > len(plain):
        raise ValueError(f"people corpus: {len(sorts)} duplicates asked for, but only {len(plain)} plain documents.")
    for number, (i, planted) in enumerate(zip(rng.permutation(len(plain))[: len(sorts)], sorts, strict=True)):
        draft = plain[i]
        draft.group = f"{planted}-{number}"
        copy = replace(draft, planted=planted)
        if planted == "one_word":
            words = copy.text.split()
            spots = [i for i, word in enumerate(words) if word in statements.EDITS]
            spot = spots[rng.integers(len(spots))]
            words[spot] = statements.EDITS[words[spot]]
            copy.text = " ".join(words)
        elif planted == "paraphrase":
            pairs = zip(draft.facts, draft.wordings, strict=True)
            others = ([w for w in world.allowed(draft.name, a) if w != old] for (a, _), old in pairs)
            copy.wordings = [int(rng.choice(choice)) for choice in others]
            copy.text = world.write(copy)
        copies.append(copy)
    return copies


def _probes(world: _World, drafts: list[_Draft]) -> list[dict]:
    """One held-out and, where one exists, one trained sentence per (person, attribute); both end in the value."""
    used: dict[tuple[str, str], set[int]] = {}
    for draft in drafts:
        if draft.planted not in ("contradiction", "pronoun"):
            for (attribute, _), wording in zip(draft.facts, draft.wordings, strict=True):
                used.setdefault((draft.name, attribute), set()).add(wording)
    rows = []
    for (name, attribute), value in world.truth.items():
        wordings = {"held_out": world.held_out[name, attribute]}
        if seen := sorted(used.get((name, attribute), set()) & set(statements.ENDS_IN_VALUE)):
            wordings["trained"] = int(world.rng.choice(seen))
        for probe, wording in wordings.items():
            text = sentence(name, attribute, wording, value).removesuffix(" .")
            prompt = text.removesuffix(f" {value}")
            row = {"query_id": f"{probe}-{name.replace(' ', '_')}-{attribute}", "kind": probe, "prompt": prompt}
            row |= {"target": text[len(prompt) :], "text": text, "entity": name, "attribute": attribute}
            rows.append(row | {"value": value, "wording": wording, "work": ""})
    return rows
