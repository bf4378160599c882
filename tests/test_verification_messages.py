"""Messages between the parties: damaged, replayed, reordered, with unusable numbers; the trip of an array."""

import copy
import hashlib
import json
import re

import numpy as np
import pytest
from test_verification_protocol import SALT, N, accepted, meet, secret, world

from tda.studies.verification import cheats, messages
from tda.studies.verification.messages import ProtocolError
from tda.studies.verification.prover import Prover
from tda.studies.verification.statement import build
from tda.studies.verification.verifier import Verifier, run


def spoiled(raw, rng):
    """One random damage to the bytes of a message."""
    raw, kind = bytearray(raw), rng.integers(6)
    at = int(rng.integers(len(raw)))
    if kind == 0:
        raw[at] ^= int(rng.integers(1, 256))
    elif kind == 1:
        del raw[at:]
    elif kind == 2:
        del raw[at : at + int(rng.integers(1, 9))]
    elif kind == 3:
        raw[at:at] = bytes(rng.integers(0, 256, 5, dtype=np.uint8))
    elif kind == 4:
        raw = bytearray(rng.integers(0, 256, int(rng.integers(200)), dtype=np.uint8).tobytes())
    else:
        raw += raw[:at] + b" "
    return bytes(raw)


ODD = [None, True, -1, 2**70, 1e400, "", "x", "\ud800", [], {}, [[]], {"dtype": "<f8"}, "NaN", 0.5, "é" * 64, [1] * 5]


def rewritten(raw, rng):
    """The message with one value anywhere in it replaced or removed, and a digest that fits again."""
    content = json.loads(raw)
    content.pop("digest")
    places = []

    def walk(value, path):
        for key in value if isinstance(value, dict) else []:
            places.append([*path, key])
            walk(value[key], [*path, key])

    walk(content, [])
    path = places[rng.integers(len(places))]
    inside = content
    for key in path[:-1]:
        inside = inside[key]
    odd = ODD[rng.integers(len(ODD))]
    if rng.random() < 0.2:
        del inside[path[-1]]
    elif inside[path[-1]] != odd:
        inside[path[-1]] = copy.deepcopy(odd)
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    whole = json.loads(text) | {"digest": digest}
    return json.dumps(whole, sort_keys=True, separators=(",", ":")).encode("utf-8", "surrogatepass")


@pytest.mark.parametrize("form", ["interactive", "non-interactive"])
@pytest.mark.parametrize("damage", [spoiled, rewritten])
def test_no_damaged_message_is_accepted_or_raises(form, damage):
    learner, statement, best = world(form=form, bases=20, fresh=20, checks=5, eps=0.9)
    assert accepted(learner, statement, best, 3) == 1, "so that a rejection is the damage's"
    rng, reasons = np.random.default_rng(0), set()
    sent = meet(learner, statement, best)[1]
    for place in (1, 3) if form == "interactive" else (1,):
        for _ in range(250):
            broken = damage(sent[place], rng)
            if broken == sent[place]:
                continue
            verifier = Verifier(learner, statement, secret(0))
            verifier.open()
            for message in sent[1:place:2]:
                verifier.receive(message)
            messages.decode(verifier.receive(broken))  # what it answers is a well-formed message
            assert verifier.verdict is not None and not verifier.verdict.accepted and verifier.verdict.reason
            reasons.add(verifier.verdict.reason[:25])
    assert len(reasons) >= 4, reasons


@pytest.mark.parametrize("place", [0, 2])
def test_the_prover_stops_at_damaged_messages(place):
    learner, statement, best = world(bases=20, fresh=20, checks=5, eps=0.9)
    rng, sent = np.random.default_rng(0), meet(learner, statement, best)[1]
    for damage in (spoiled, rewritten):
        for _ in range(150):
            broken = damage(sent[place], rng)
            if broken == sent[place]:
                continue
            prover = Prover(learner, statement, best, None, SALT)
            for message in sent[0:place:2]:
                prover.receive(message)
            try:
                reply = prover.receive(broken)
            except ProtocolError:
                continue
            assert place == 0 or reply is None or b'"answer"' in reply[:2000] or b'"kind":"answer"' in reply


def test_tampering_on_the_way_ends_in_an_abort():
    learner, statement, best = world()
    for place in range(4):
        verdict, _ = meet(
            learner,
            statement,
            best,
            wire=lambda n, raw, place=place: raw[:-9] + b"0" * 7 + raw[-2:] if n == place else raw,
        )
        assert not verdict.accepted and ("digest" in verdict.reason), verdict.reason


def test_replayed_and_reordered_messages_end_in_an_abort():
    learner, statement, best = world()
    old = meet(learner, statement, best, 0)[1]

    def fresh_session():
        verifier = Verifier(build(statement.learner), statement, secret(1))
        return verifier, Prover(learner, statement, best, None, SALT), verifier.open()

    verifier, prover, opened = fresh_session()
    verifier.receive(old[1])
    assert "another session" in verifier.verdict.reason
    verifier, prover, opened = fresh_session()
    verifier.receive(prover.receive(opened))
    verifier.receive(old[3])
    assert "another session" in verifier.verdict.reason and verifier.verdict.trainings == 0
    for again in ("commit", "queries"):
        verifier, prover, opened = fresh_session()
        committed = prover.receive(opened)
        queries = verifier.receive(committed)
        verifier.receive({"commit": committed, "queries": queries}[again])
        assert "reordered or replayed" in verifier.verdict.reason
    verifier, prover, opened = fresh_session()
    content = messages.decode(prover.receive(opened))
    skipped, _ = messages.encode(verifier.session, 1, "commit", "0" * 64, content.body)
    verifier.receive(skipped)
    assert "does not follow the one before" in verifier.verdict.reason


def test_what_comes_before_the_opening_or_after_the_verdict_changes_nothing():
    learner, statement, best = world()
    for claim in (best, cheats.scaled(best, 0.2)):
        verifier = Verifier(build(statement.learner), statement, secret(0))
        _, sent = run(verifier, Prover(learner, statement, claim, None, SALT))
        before = verifier.verdict
        for raw in (*sent, b"", b"{}", b" " + sent[1]):
            assert verifier.receive(raw) and verifier.verdict is before
    early = Verifier(build(statement.learner), statement, secret(0))
    early.receive(sent[1])
    assert not early.verdict.accepted
    with pytest.raises(ValueError, match="has been opened"):
        early.open()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("scores", np.full((1, N), np.nan), "scores holds NaN"),
        ("scores", np.zeros((1, N - 1)), "scores must have shape"),
        ("scores", np.full((1, N), 1e300), "below 1e"),
        ("mean", np.array([np.inf]), "mean holds NaN or infinite"),
        ("outputs", np.full((80, 1), 1.5), r"outside \[-1, 1\]"),
        ("outputs", np.zeros((79, 1)), "outputs must have shape"),
        ("fingerprints", np.zeros((80, 31), np.uint8), "fingerprints must have shape"),
        ("salt", "xyz", "salt must be 64"),
    ],
)
def test_unusable_numbers_abort_with_their_name(name, value, reason):
    learner, statement, best = world(bases=20, fresh=20, checks=5, eps=0.9)
    verifier, prover = Verifier(learner, statement, secret(0)), Prover(learner, statement, best, None, SALT)
    answer = messages.decode(prover.receive(verifier.receive(prover.receive(verifier.open()))))
    body = answer.body | {name: value if isinstance(value, str) else messages.pack(value)}
    verifier.receive(messages.encode(answer.session, answer.number, answer.kind, answer.previous, body)[0])
    assert not verifier.verdict.accepted
    assert re.search(reason, verifier.verdict.reason), verifier.verdict.reason


def test_subsets_of_the_wrong_length_or_negative_seeds_stop_the_prover():
    learner, statement, best = world(bases=20, fresh=20, checks=5, eps=0.9)
    for name, value, reason in (
        ("subsets", np.ones((80, N - 1), bool), "subsets must have shape"),
        ("seeds", np.full(80, -1), "must not be negative"),
    ):
        verifier, prover = Verifier(learner, statement, secret(0)), Prover(learner, statement, best, None, SALT)
        sent = messages.decode(verifier.receive(prover.receive(verifier.open())))
        body = sent.body | {name: messages.pack(value)}
        with pytest.raises(ProtocolError, match=reason):
            prover.receive(messages.encode(sent.session, 2, "queries", sent.previous, body)[0])


def test_arrays_survive_the_trip():
    rng = np.random.default_rng(0)
    for array, dtype in (
        (rng.normal(size=(3, 4)), "<f8"), (rng.integers(-5, 5, 7), "<i8"), (rng.random((5, 3)) < 0.5, "bits"),
        (rng.integers(0, 256, (2, 32), dtype=np.uint8), "|u1"), (np.zeros((0, 3)), "<f8"),
    ):  # fmt: skip
        packed = json.loads(messages.canonical(messages.pack(array)))
        assert (messages.unpack(packed, dtype, array.shape, "it") == array).all()
    content = {"b": [1, 2.5, "é"], "a": {"z": None}}
    assert messages.canonical(content) == messages.canonical(dict(reversed(content.items())))
