"""Running a session: in one process, between two processes over files, and again from its transcript."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tda.artefacts import atomic
from tda.verification import cheats
from tda.verification.claims import Attribution
from tda.verification.judge import Verdict
from tda.verification.learners import Learner, build
from tda.verification.messages import ProtocolError, decode
from tda.verification.prover import Prover
from tda.verification.statement import Statement
from tda.verification.verifier import Verifier

Transcript = list[bytes]


def run(
    verifier: Verifier, prover: Prover, wire: Callable[[int, bytes], bytes] | None = None
) -> tuple[Verdict, Transcript]:
    """``(verdict, messages as sent)``. ``wire(number, raw) -> raw`` may change what travels: an adversary in between.

    A prover that cannot use a message stops; the verifier, hearing nothing more, aborts.
    """
    wire = wire or (lambda number, raw: raw)
    raw, sent = verifier.open(), []
    while True:
        sent.append(raw)
        try:
            reply = prover.receive(wire(len(sent) - 1, raw))
        except ProtocolError as error:
            verdict = verifier.verdict or Verdict(False, f"the prover stopped: {error}", 0)
            return verdict, sent
        if verifier.verdict is not None or reply is None:
            return verifier.verdict or Verdict(False, "the prover fell silent", 0), sent
        sent.append(reply)
        raw = verifier.receive(wire(len(sent) - 1, reply))


def repeat(
    statement: Statement, claim, runs: int, seed: int = 0, alter=None, learner: Learner | None = None
) -> list[tuple[Verdict, Attribution]]:
    """``(verdict, claim)`` of ``runs`` independent sessions, for measuring rates; the same ``seed`` repeats them.

    ``claim`` is an :class:`Attribution` or ``claim(rng)`` that makes one; ``alter(rng, claim)`` makes what changes
    the answer (:mod:`tda.verification.cheats`). Both parties share one ``learner`` object (built from the statement
    unless given), so ``trainings`` of the verdicts count the verifier's only.
    """
    shared, found = learner or build(statement.learner), []
    for i in range(runs):
        rng = np.random.default_rng([seed, 32, i])
        verifier = Verifier(shared, statement, rng.bytes(32))
        made = claim(rng) if callable(claim) else claim
        prover = Prover(shared, statement, made, alter(rng, made) if alter else None, rng.bytes(32).hex())
        found.append((run(verifier, prover)[0], made))
    return found


def damaged(kind: str, learner: Learner, statement: Statement, claim: Attribution, rng: np.random.Generator) -> Verdict:
    """The verdict of an interactive session in which the answer is damaged on its way
    (:data:`tda.verification.cheats.DAMAGES`).
    """
    prover = [Prover(learner, statement, claim, None, "00" * 32) for _ in range(2)]
    earlier = run(Verifier(learner, statement, rng.bytes(32)), prover[0])[1]
    verifier, seen = Verifier(learner, statement, rng.bytes(32)), []

    def wire(number: int, raw: bytes) -> bytes:
        seen.append(raw)
        return cheats.damaged(kind, seen, earlier, rng) if number == 3 else raw

    return run(verifier, prover[1], wire)[0]


def damaged_often(count: int, learner: Learner, statement: Statement, claim: Attribution, rng: np.random.Generator):
    """``(accepted, raised, reasons)`` of ``count`` sessions by :func:`damaged`, every kind in turn: how many were
    accepted, how many ended in an exception (both should be 0), and a ``Counter`` of (kind, reason of the abort).
    """
    accepted, raised, reasons = 0, 0, Counter()
    for i in range(count):
        kind = cheats.DAMAGES[i % len(cheats.DAMAGES)]
        try:
            verdict = damaged(kind, learner, statement, claim, rng)
        except Exception:  # whatever it is, it would end a verifier
            raised += 1
            continue
        accepted += verdict.accepted
        reasons[kind, verdict.reason.split("(")[0].strip()[:60]] += 1
    return accepted, raised, reasons


def audit(transcript: Transcript, learner: Learner, statement: Statement) -> Verdict:
    """The verdict of a finished session, found again from its messages and the secret that the last one reveals.

    Raises ``ValueError`` if the verifier did not follow the protocol: its messages, byte for byte, must be those that
    the secret dictates. The first of them holds the secret's hash, in both forms, so the coins were fixed before the
    claim was known.
    """
    try:
        last = decode(transcript[-1])
        verifier = Verifier(learner, statement, bytes.fromhex(last.body["secret"]))
    except (ProtocolError, IndexError, KeyError, TypeError) as error:
        raise ValueError(f"the transcript does not end in a verdict ({error}).") from None
    raw = verifier.open()
    for place, message in enumerate(transcript):
        if place % 2 == 0 and raw != message:
            raise ValueError(
                f"message {place} is not what the verifier's secret dictates; it did not follow the protocol."
            )
        if place % 2:
            raw = verifier.receive(message)
    return verifier.verdict


def over_files(party: Verifier | Prover, folder: Path, timeout: float) -> None:
    """One side of a session whose messages are files ``00.json``, ``01.json``, ... in a folder that both can reach.

    Waits for the other side's next file at most ``timeout`` seconds, then raises ``TimeoutError``.
    """
    number = 0
    if isinstance(party, Verifier):
        _write(folder, 0, party.open())
        number = 1
    while True:
        reply = party.receive(_wait(folder / f"{number:02d}.json", timeout))
        if reply is not None:
            _write(folder, number + 1, reply)
        if party.verdict is not None:
            return
        number += 2


def _write(folder: Path, number: int, raw: bytes) -> None:
    with atomic(folder / f"{number:02d}.json") as path:
        path.write_bytes(raw)


def _wait(path: Path, timeout: float) -> bytes:
    until = time.monotonic() + timeout
    while not path.exists():
        if time.monotonic() > until:
            raise TimeoutError(f"{path} did not arrive within {timeout:g} seconds; is the other party running?")
        time.sleep(0.02)
    return path.read_bytes()
