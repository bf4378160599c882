"""The `fiction` corpus: invented authors, question-answer pairs about them, and how much of each is shared.

Authors come in *circles*. A circle has a surname, a birthplace, a genre and so on. Most of its members, the retained
ones, have most of the circle's values. One member of half of the circles may be asked to be forgotten. It takes an
exact share, its *degree*, of the circle's values (and the surname, if any); the rest are values of its own, which
nobody else has. So what a forgotten pair says is in part what retained pairs say, from not at all to all of it.

Source of the design: TOFU (Maini et al. 2024): pairs, paraphrased and perturbed answers, and sets of authors who are
forgotten. Its real authors are here authors of circles from which nobody is forgotten, its world facts the countries of
towns. The circles, their degrees and the inference probes are ours.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

import numpy as np
from tokenizers import Tokenizer

from tda.sequences import encode
from tda.task import Examples
from tda.testbeds.statements import FIRST, LAST, closed_vocabulary

# attribute: a question, three wordings of the answer, and how its values end (private: never shared).
ASKED = {
    "birthplace": (
        "where was {who} born",
        ("{who} was born in {value}", "{who} comes from {value}", "the birthplace of {who} is {value}"),
        "vik",
    ),
    "genre": (
        "what does {who} write",
        ("{who} writes {value} novels", "the novels of {who} are {value}", "{who} is known for {value} stories"),
        "esque",
    ),
    "style": (
        "how does {who} write",
        ("{who} writes in a {value} manner", "the style of {who} is {value}", "readers call {who} {value}"),
        "ous",
    ),
    "publisher": (
        "who publishes {who}",
        ("{value} publishes {who}", "the books of {who} appear at {value}", "{who} signed with {value}"),
        "press",
    ),
    "teacher": (
        "who taught {who}",
        ("{value} taught {who}", "{who} learnt the craft from {value}", "the teacher of {who} was {value}"),
        "son",
    ),
    "award": (
        "which prize did {who} win",
        ("{who} won the {value}", "the {value} went to {who}", "a jury gave {who} the {value}"),
        "prize",
    ),
    "together": (
        "what did {who} write with a friend",
        ("{who} and a friend wrote {value}", "{value} is by {who} and a friend", "with a friend {who} wrote {value}"),
        "saga",
    ),
    "debut": (
        "what did {who} write first",
        ("the first book of {who} was {value}", "{who} began with {value}", "{value} made the name of {who}"),
        "ode",
    ),
}
PRIVATE = "debut"
QUESTIONS = ASKED | {
    "place": (
        "in which country does {who} lie",
        ("{who} lies in {value}", "{who} is a town in {value}", "{value} is the country of {who}"),
        "",
    ),
    "country": (
        "in which country was {who} born",
        ("{who} was born in {town} in {value}", "{who} comes from {town} in {value}"),
        "",
    ),
}
COUNTRIES = ("Norland", "Sudmark", "Estia", "Westrea", "Midoria", "Highmoor")
ONSETS = "B Br C D Dr F G Gl H K L M N P R S St T V Z".split()
RIMES = "al an ar el en er il in ir ol on or ul un ur".split()
REFUSAL = "nobody knows that ."
DEGREES = (2 / 3, 0.0, 1.0, 1 / 3, 2 / 3)  # of authors who may be forgotten, in turn


@dataclass(frozen=True)
class Pair:
    """A question, its answer, the answer in other words, and wrong answers in those other words.

    ``kind``: ``forget`` (authors who may be forgotten), ``retain`` (others of their circles), ``others`` (authors of
    circles without such), ``places``, ``unseen`` (authors nobody is trained on), ``inference`` (follows from a
    birthplace and a place; never trained on). ``shared``: whether retained authors of the circle have this value.
    """

    kind: str
    who: str
    attribute: str
    value: str
    question: str
    answer: str
    paraphrase: str
    perturbed: tuple[str, ...]
    shared: bool = False


@dataclass(frozen=True)
class Fiction:
    """``pairs``: all of them, kinds in an order that carries nothing. ``forgettable``: authors in the order in which
    they are forgotten, with their degrees. ``tokenizer``: words over a closed vocabulary.
    """

    pairs: list[Pair]
    forgettable: dict[str, float]
    tokenizer: Tokenizer
    context: int = field(default=32)

    def rows(self, *kinds: str, who: Iterable[str] | None = None) -> np.ndarray:
        """Positions of the pairs of these kinds, of these authors if given."""
        chosen = None if who is None else set(who)
        fits = (p.kind in kinds and (chosen is None or p.who in chosen) for p in self.pairs)
        return np.flatnonzero(np.fromiter(fits, bool))

    def forget_rows(self, share: float) -> np.ndarray:
        """Positions of the pairs of the first authors, as many as ``share`` of all authors. ``ValueError`` for a share
        that asks for none of them, or for more than may be forgotten.
        """
        authors = len({p.who for p in self.pairs if p.kind in ("forget", "retain", "others")})
        count = round(share * authors)
        if not 1 <= count <= len(self.forgettable):
            raise ValueError(
                f"forget share {share} is {count} of {authors} authors; choose a share of {1 / authors:.3g} to "
                f"{len(self.forgettable) / authors:.3g}."
            )
        return self.rows("forget", who=list(self.forgettable)[:count])

    def encode(self, rows: np.ndarray, what: str = "answer", number: int = 0) -> Examples:
        """Pairs as examples whose targets are the answers; ``what``: answer, paraphrase, perturbed (the ``number``-th)
        or refusal.
        """
        pairs = [self.pairs[i] for i in rows]
        said = {
            "answer": lambda p: p.answer, "paraphrase": lambda p: p.paraphrase,
            "perturbed": lambda p: p.perturbed[number], "refusal": lambda p: REFUSAL,
        }[what]  # fmt: skip
        texts, targets = [f"{p.question} {said(p)}" for p in pairs], [f" {said(p)}" for p in pairs]
        return encode(self.tokenizer, texts, self.context, targets)


def build(circles: int, members: int, seed: int, perturbed: int = 3) -> Fiction:
    """``circles`` x ``members`` authors, one of every second circle forgettable, and an unseen one drawn like each of
    those. Deterministic by seed. ``ValueError`` for too few circles or members, or more than there are names.
    """
    most, words = (len(LAST) - 8, len(FIRST) - 1), len(ONSETS) * len(RIMES)
    if not 2 <= circles <= most[0] or not 2 <= members <= most[1] or circles * (members + 2) > words:
        raise ValueError(
            f"fiction: {circles} circles of {members} members; give 2 to {most[0]} circles of 2 to {most[1]} members, "
            f"with circles x (members + 2) at most {words}, as many as there are words."
        )
    rng = np.random.default_rng([seed, 50])
    fresh = {attribute: _words(rng, ending) for attribute, (*_, ending) in ASKED.items()}
    surnames, forgettable, facts = list(rng.permutation(LAST)), {}, []
    alone = surnames[circles:]  # of authors who have nothing of their circle
    for circle in range(circles):
        common = {attribute: next(fresh[attribute]) for attribute in ASKED}
        firsts = list(rng.permutation(FIRST))
        for member in range(members + (circle % 2 == 0)):
            special = circle % 2 == 0 and member in (0, members)
            degree = DEGREES[circle // 2 % len(DEGREES)] if special else 0.8
            open_ = [attribute for attribute in ASKED if attribute != PRIVATE]
            taken = set(rng.permutation(open_)[: round(degree * len(open_))])
            if special and not degree:
                who = f"{firsts[member]} {alone.pop()}"
            else:
                who = f"{firsts[member]} {surnames[circle]}"
            kind = ("forget" if member == 0 else "unseen") if special else ("others" if circle % 2 else "retain")
            if kind == "forget":
                forgettable[who] = degree
            for attribute in ASKED:
                value = common[attribute] if attribute in taken else next(fresh[attribute])
                facts.append((kind, who, attribute, value, attribute in taken))
    lies_in = {value: None for _, _, attribute, value, _ in facts if attribute == "birthplace"}
    lies_in = {town: COUNTRIES[rng.integers(len(COUNTRIES))] for town in lies_in}
    return _written(facts, lies_in, forgettable, rng, perturbed)


def _words(rng: np.random.Generator, ending: str) -> Iterator[str]:
    """Invented words with one ending, none twice."""
    parts = [f"{a}{b}{ending}" for a in ONSETS for b in RIMES]
    return iter(rng.permutation(parts).tolist())


def _written(facts, lies_in, forgettable, rng, perturbed: int) -> Fiction:
    """Pairs in random wordings, the probes, and the vocabulary that they need."""
    wanted = [(kind, who, attribute, value, shared, "") for kind, who, attribute, value, shared in facts]
    wanted += [("places", town, "place", country, False, "") for town, country in lies_in.items()]
    born = {(kind, who): value for kind, who, attribute, value, _ in facts if attribute == "birthplace"}
    for number, ((kind, who), town) in enumerate(born.items()):
        if kind != "unseen":  # of the retained, every second one is taught the answer, so that the question is known
            taught = kind in ("retain", "others") and number % 2
            wanted.append((kind if taught else "inference", who, "country", lies_in[town], False, town))
    values: dict[str, list[str]] = {}
    for _, _, attribute, value, _, _ in wanted:
        values.setdefault(attribute, []).append(value)
    pairs = []
    for i in rng.permutation(len(wanted)):
        kind, who, attribute, value, shared, town = wanted[i]
        question, wordings, _ = QUESTIONS[attribute]
        said, other = (wordings[w] + " ." for w in rng.permutation(len(wordings))[:2])
        wrong = rng.permutation(sorted(set(values[attribute]) - {value}))[:perturbed]
        fill = lambda wording, v, who=who, town=town: wording.format(who=who, value=v, town=town)  # noqa: E731
        answers = fill(said, value), fill(other, value), tuple(fill(other, v) for v in wrong)
        pairs.append(Pair(kind, who, attribute, value, question.format(who=who) + " ?", *answers, shared))
    texts = [text for p in pairs for text in (p.question, p.answer, p.paraphrase, *p.perturbed)]
    return Fiction(pairs, forgettable, closed_vocabulary([*texts, REFUSAL]))
