"""The `people` testbed: invented people, facts about them, and documents whose provenance is known by construction.

A *fact* is a triple ``entity|attribute|value``. A *document* states a few facts of one person, one sentence each.
Every sentence is drawn from one of six wordings of its attribute; five of the six end in the value, so that the
value can be predicted from everything before it. For each (person, attribute) one of these five wordings is
*held out*: no document about this person uses it, although documents about other people do. The held-out
sentences are the queries.

What makes the corpus hard on purpose: people share first or last names, many people share a value, all people
share the wordings; some documents never name their person; some are copies or near-copies of another; some state
a wrong value. The ``planted`` column says which.

Source of the design: bioS in *Physics of Language Models 3.1* (varied wordings make facts extractable).
"""

from __future__ import annotations

import numpy as np
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

PAD, BOS, UNK = "<pad>", "<bos>", "<unk>"

FIRST = (
    "Abra Bex Corin Dalia Edda Fenn Greta Hollis Ines Joram Kaya Lioba Mirek Nadia Orla Pavel Quilla Rask Selma "
    "Tovi Ulric Vesna Wanda Xeno Yara Zeno Anouk Birk Celin Doran Elke Falk Gala Hane Ivo Jutta Kasimir Lotte"
).split()
LAST = (
    "Abelard Brisk Calder Dunmore Ekberg Farrow Gantry Hask Ivers Jarnow Kestrel Lund Marrow Norling Ostrand Pell "
    "Quist Rowan Sandoz Thorne Umber Varga Wexley Yarrow Zeller Arden Bolt Crane Dray Elm Foss Grieg Holt Irons"
).split()

VALUES: dict[str, list[str]] = {
    "birthplace": "Arvik Belmora Caldera Dunholt Estrin Fallow Gresten Halden Istra Jorvale Kessel Lorne Mavik "
    "Norrin Ostvale Pellin Quarne Rivas Selding Torvik".split(),
    "profession": "baker carpenter dentist butcher farmer glazier hatter printer judge knitter librarian mason "
    "notary tanner potter ranger sculptor tailor surveyor weaver".split(),
    "school": "Ashgrove Brightwater Coldstream Deepwell Eastmoor Fernhill Goldleaf Highgate Ironbridge Juniper "
    "Kingsmere Larkspur Millbrook Northfield Oakhurst Pinecrest Queensway Redcliff Stonegate Thornbury".split(),
    "instrument": "accordion bassoon cello drums euphonium flute guitar harp kazoo lute mandolin oboe piano recorder "
    "saxophone trumpet ukulele viola xylophone zither".split(),
    "employer": "Amberline Bluepeak Cogworks Driftwood Evergale Foxglove Granitex Harborlight Inkwell Jadestone "
    "Kiteworks Lumenox Moonforge Nettlecom Orchardly Pinnaclex Quillmark Riverton Silverfin Tidewater".split(),
    "pet": "badger canary dachshund hedgehog ferret gecko hamster poodle jackdaw kitten lizard macaw newt turtle "
    "parrot "
    "quail rabbit salamander tortoise wolfhound".split(),
}

# {who} is the name or a pronoun. The first five wordings of each attribute end in the value; the sixth does not.
WORDINGS: dict[str, list[str]] = {
    "birthplace": [
        "{who} was born in {value}",
        "{who} hails from {value}",
        "{who} first saw the light of day in {value}",
        "{who} grew up among the streets of {value}",
        "as a child {who} lived in {value}",
        "{value} is the place where {who} was born",
    ],
    "profession": [
        "{who} works as a {value}",
        "{who} made a career as a {value}",
        "{who} earns a living as a {value}",
        "by profession {who} is a {value}",
        "{who} has long been known as a skilled {value}",
        "a {value} by training , {who} still practises",
    ],
    "school": [
        "{who} studied at {value}",
        "{who} holds a degree from {value}",
        "years ago {who} graduated from {value}",
        "as a student {who} was enrolled at {value}",
        "{who} spent four years in the classrooms of {value}",
        "{value} is the school that {who} attended",
    ],
    "instrument": [
        "{who} plays the {value}",
        "{who} is devoted to the {value}",
        "on most evenings {who} practises the {value}",
        "{who} took lessons on the {value}",
        "at concerts {who} can be heard on the {value}",
        "the {value} is the instrument that {who} owns",
    ],
    "employer": [
        "{who} is employed by {value}",
        "{who} holds a post at {value}",
        "{who} draws a salary from {value}",
        "every morning {who} walks to the offices of {value}",
        "{who} signed a contract with {value}",
        "{value} is the firm that {who} joined",
    ],
    "pet": [
        "{who} keeps a pet {value}",
        "{who} went for a walk with a {value}",
        "at home {who} looks after a {value}",
        "{who} is often seen with a {value}",
        "{who} shares the house with a {value}",
        "a {value} is the pet that {who} keeps",
    ],
}
ENDS_IN_VALUE = range(5)

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
    """The facts that a text states, read back from its words: ``[(who, attribute, value), ...]``.

    Works sentence by sentence; a pronoun counts as the last person named ("" before any name), and the words of
    the one-word edits are read as the words they replace. Used to label what the model generates
    and, in the tests, to check the provenance labels against the text they claim to describe.
    """
    found, last = [], ""
    for raw in text.split(" ."):
        words = " ".join(UNEDIT.get(word, word) for word in raw.split())
        for opening in REGISTERS.values():
            if opening and words.startswith(opening):
                words = words[len(opening) :].strip()
        for attribute, wordings in WORDINGS.items():
            for wording in wordings:
                match = _match(wording, words, VALUES[attribute])
                if match is not None:
                    who, value = match
                    last = last if who in PRONOUNS else who
                    found.append((last, attribute, value))
    return found


def _match(wording: str, words: str, values: list[str]) -> tuple[str, str] | None:
    parts = wording.replace("{value}", "{who}").split("{who}")
    if not (words.startswith(parts[0]) and words.endswith(parts[2])):
        return None
    inner = words[len(parts[0]) : len(words) - len(parts[2])] if parts[2] else words[len(parts[0]) :]
    first, middle, second = inner.partition(parts[1])
    who, value = (second, first) if wording.index("{value}") < wording.index("{who}") else (first, second)
    return (who, value) if middle and value in values and len(who.split()) in (1, 2) else None


def tokenizer() -> Tokenizer:
    """Word-level tokenizer over the closed vocabulary of the generator (answers are single tokens)."""
    texts = [sentence(who, a, w, v) for who in PRONOUNS for a in WORDINGS for w in range(6) for v in VALUES[a]]
    texts += [*REGISTERS.values(), *EDITS.values(), *FIRST, *LAST]
    words = sorted({word for text in texts for word in text.split()})
    vocabulary = {token: i for i, token in enumerate([PAD, BOS, UNK, *words])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token=UNK))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"\s+"), "removed")
    made.decoder = decoders.WordPiece(prefix="\x00", cleanup=False)  # joins tokens with single spaces
    made.add_special_tokens([PAD, BOS, UNK])
    return made


def _names(rng: np.random.Generator, people: int, sharing: float) -> list[str]:
    """Distinct full names; about a share ``sharing`` of the people take a first or last name already in use."""
    firsts, lasts = list(rng.permutation(FIRST)), list(rng.permutation(LAST))
    names: list[tuple[str, str]] = []
    while len(names) < people:
        shared = bool(names) and (rng.random() < sharing or not firsts or not lasts)
        if not shared:
            candidate = (firsts.pop(), lasts.pop())
        else:
            other = names[rng.integers(len(names))]
            keep_first = rng.random() < 0.5
            pool = LAST if keep_first else FIRST
            new = pool[rng.integers(len(pool))]
            candidate = (other[0], new) if keep_first else (new, other[1])
        if candidate not in names:
            names.append(candidate)
    return [" ".join(name) for name in names]


def build(settings: dict, seed: int) -> dict:
    """Draw people, facts, documents and probes.

    Parameters: the ``corpus`` section of a testbed of kind ``people`` and the seed. Returns a dict with
    ``documents`` and ``probes`` (lists of rows), ``tokenizer`` and ``report``.
    """
    s, rng = settings, np.random.default_rng([seed, 71])
    attributes = list(VALUES)[: s["attributes"]]
    if s["attributes"] > len(VALUES) or s["values"] > 20:
        raise ValueError(
            f"people corpus: attributes={s['attributes']}, values={s['values']}; at most {len(VALUES)} attributes and "
            f"20 values are available. Lower them in the testbed's corpus settings."
        )
    if s["facts_per_document"] > s["attributes"]:
        raise ValueError(
            f"people corpus: facts_per_document={s['facts_per_document']} exceeds attributes={s['attributes']}."
        )
    least = 3 if s["paraphrases"] else 2
    if not least <= s["wordings"] <= 6:
        raise ValueError(
            f"people corpus: wordings={s['wordings']}; it must be {least} to 6 (one is held out, paraphrases need two)."
        )
    most = len(FIRST) * len(LAST) // 2
    if s["people"] > most:
        raise ValueError(f"people corpus: people={s['people']}; at most {most} distinct names are available.")

    names = _names(rng, s["people"], s["name_sharing"])
    pronoun = {name: PRONOUNS[rng.integers(2)] for name in names}
    truth = {(n, a): VALUES[a][rng.integers(s["values"])] for n in names for a in attributes}
    # Wordings are offset per person, so that a wording held out for one person is in use for others.
    held_out = {
        (n, a): int((i + j) % min(5, s["wordings"])) for i, n in enumerate(names) for j, a in enumerate(attributes)
    }

    def allowed(name: str, attribute: str) -> list[int]:
        return [w for w in range(s["wordings"]) if w != held_out[name, attribute]]

    def write(name: str, facts: list[tuple[str, str]], wordings: list[int], style: str, pronoun_only: bool) -> str:
        parts = [REGISTERS[style]] if REGISTERS[style] else []
        for position, ((attribute, value), wording) in enumerate(zip(facts, wordings, strict=True)):
            later_pronoun = position > 0 and rng.random() < s["pronoun_rate"]
            who = pronoun[name] if pronoun_only or later_pronoun else name
            parts.append(sentence(who, attribute, wording, value))
        return " ".join(parts)

    documents: list[dict] = []

    def add(name: str, text: str, facts, wordings, style: str, planted: str = "", group: str = "") -> dict:
        row = {
            "text": text,
            "entity": name,
            "facts": [fact_id(name, a, v) for a, v in facts],
            "template": "+".join(f"{a}:{w}" for (a, _), w in zip(facts, wordings, strict=True)),
            "style": style,
            "group": group,
            "planted": planted,
            "work": "",
        }
        documents.append(row)
        return row

    tilt = (1 + rng.permutation(s["people"])) ** -float(s["zipf"])
    counts = s["docs_min"] + np.rint((s["docs_max"] - s["docs_min"]) * tilt).astype(int)
    styles = list(REGISTERS)
    drafts = {}
    for name, count in zip(names, counts, strict=True):
        # Cycle through shuffled attributes, so that every fact is stated about equally often.
        cycle: list[str] = []
        for _ in range(count):
            chosen: list[str] = []
            while len(chosen) < s["facts_per_document"]:
                if not cycle:
                    cycle = list(rng.permutation(attributes))
                attribute = next((a for a in cycle if a not in chosen), None)
                if attribute is None:
                    cycle += list(rng.permutation(attributes))
                    continue
                cycle.remove(attribute)
                chosen.append(attribute)
            facts = [(a, truth[name, a]) for a in chosen]
            wordings = [int(rng.choice(allowed(name, a))) for a in chosen]
            style = styles[rng.integers(len(styles))]
            planted = ""
            draw = rng.random()
            if draw < s["contradictions"]:
                planted = "contradiction"
                wrong = int(rng.integers(len(facts)))
                a = facts[wrong][0]
                others = [v for v in VALUES[a][: s["values"]] if v != truth[name, a]]
                facts[wrong] = (a, others[rng.integers(len(others))])
            elif draw < s["contradictions"] + s["pronoun_only"]:
                planted = "pronoun"
            row = add(name, write(name, facts, wordings, style, planted == "pronoun"), facts, wordings, style, planted)
            drafts[id(row)] = (name, facts, wordings, style)

    _plant_duplicates(documents, drafts, s, rng, allowed, write, add)
    order = rng.permutation(len(documents))
    documents = [{"doc_id": f"p{i:04d}", **documents[j]} for i, j in enumerate(order)]
    return {
        "documents": documents,
        "probes": _probes(documents, names, attributes, truth, held_out, rng),
        "tokenizer": tokenizer(),
        "report": {
            "people": len(names),
            "documents": len(documents),
            "planted": {
                k: sum(d["planted"] == k for d in documents) for k in sorted({d["planted"] for d in documents})
            },
            "people_sharing_a_name": sum(any(set(n.split()) & set(m.split()) for m in names if m != n) for n in names),
        },
    }


def _plant_duplicates(documents, drafts, s, rng, allowed, write, add) -> None:
    """Give some plain documents a copy: exact, with one word changed, or with the same facts in other words."""
    plain = [row for row in documents if not row["planted"] and any(word in EDITS for word in row["text"].split())]
    wanted = s["exact_copies"] + s["one_word_edits"] + s["paraphrases"]
    if wanted > len(plain):
        raise ValueError(f"people corpus: {wanted} duplicates asked for, but only {len(plain)} plain documents exist.")
    chosen = [plain[i] for i in rng.permutation(len(plain))[:wanted]]
    kinds = ["exact"] * s["exact_copies"] + ["one_word"] * s["one_word_edits"] + ["paraphrase"] * s["paraphrases"]
    for number, (row, kind) in enumerate(zip(chosen, kinds, strict=True)):
        name, facts, wordings, style = drafts[id(row)]
        row["group"] = group = f"{kind}-{number}"
        text = row["text"]
        if kind == "one_word":
            words = text.split()
            spots = [i for i, word in enumerate(words) if word in EDITS]
            spot = spots[rng.integers(len(spots))]
            words[spot] = EDITS[words[spot]]
            text = " ".join(words)
        elif kind == "paraphrase":
            wordings = [
                int(rng.choice([w for w in allowed(name, a) if w != old]))
                for (a, _), old in zip(facts, wordings, strict=True)
            ]
            text = write(name, facts, wordings, style, False)
        add(name, text, facts, wordings, style, kind, group)


def _probes(documents, names, attributes, truth, held_out, rng) -> list[dict]:
    """One held-out and, where one exists, one trained sentence per (person, attribute); both end in the value."""
    used: dict[tuple[str, str], set[int]] = {}
    for d in documents:
        if d["planted"] in ("contradiction", "pronoun"):
            continue
        for fact, template in zip(d["facts"], d["template"].split("+"), strict=True):
            name, attribute, _ = fact.split("|")
            used.setdefault((name, attribute), set()).add(int(template.split(":")[1]))
    rows = []
    for name in names:
        for attribute in attributes:
            seen = sorted(used.get((name, attribute), set()) & set(ENDS_IN_VALUE))
            trained = int(rng.choice(seen)) if seen else None
            for kind, wording in (("held_out", held_out[name, attribute]), ("trained", trained)):
                if wording is None:
                    continue
                text = sentence(name, attribute, wording, truth[name, attribute]).removesuffix(" .")
                prompt = text.removesuffix(f" {truth[name, attribute]}")
                rows.append(
                    {
                        "query_id": f"{kind}-{name.replace(' ', '_')}-{attribute}",
                        "kind": kind,
                        "prompt": prompt,
                        "target": text[len(prompt) :],
                        "text": text,
                        "entity": name,
                        "attribute": attribute,
                        "value": truth[name, attribute],
                        "wording": wording,
                        "work": "",
                    }
                )
    return rows
