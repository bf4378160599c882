"""Prover and verifier as two processes that exchange messages through a folder.

python -m tda.studies.verification verify problem.json folder
python -m tda.studies.verification prove  problem.json folder --budget 800

``problem.json`` is a statement (:meth:`Statement.to_json`). The verifier exits with 0 if it accepts and with 1 if it
aborts; 2 means that the problem cannot be used, or that the other party did not appear.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np

from tda.artefacts import atomic
from tda.studies.verification import cheats
from tda.studies.verification.messages import ProtocolError
from tda.studies.verification.prover import Prover, fit
from tda.studies.verification.statement import Statement, build
from tda.studies.verification.verifier import Verifier
from tda.task import use_threads


def over_files(party: Verifier | Prover, folder: Path, timeout: float) -> None:
    """One side of a session whose messages are files ``00.json``, ``01.json``, ... in a folder that both can reach.

    Waits for the other side's next file at most ``timeout`` seconds, then raises ``TimeoutError``.
    """
    number, reply = (0, party.open()) if isinstance(party, Verifier) else (-1, None)
    while True:
        if reply is not None:
            with atomic(folder / f"{number:02d}.json") as path:
                path.write_bytes(reply)
        if party.verdict is not None:
            return
        reply = party.receive(_wait(folder / f"{number + 1:02d}.json", timeout))
        number += 2


def _wait(path: Path, timeout: float) -> bytes:
    until = time.monotonic() + timeout
    while not path.exists():
        if time.monotonic() > until:
            raise TimeoutError(f"{path} did not arrive within {timeout:g} seconds; is the other party running?")
        time.sleep(0.02)
    return path.read_bytes()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tda.studies.verification", description=__doc__.splitlines()[0])
    parser.add_argument("role", choices=["verify", "prove"])
    parser.add_argument("problem", type=Path, help="a statement as JSON")
    parser.add_argument("folder", type=Path, help="where the messages are exchanged; empty at first")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for each message")
    parser.add_argument("--budget", type=int, default=800, help="trainings that the prover fits its claim to")
    parser.add_argument("--scale", type=float, default=1.0, help="0.5 halves the scores: a cheat")
    given = parser.parse_args(arguments)
    use_threads()
    try:
        statement = Statement.of(json.loads(given.problem.read_text()))
        learner = build(statement.learner)
        if given.role == "verify":
            party = Verifier(learner, statement)
        else:
            rng = np.random.default_rng([0, 31])  # the prover's own subsets
            claim = fit("least_squares", learner, given.budget, statement.p, rng, statement.seed)
            party = Prover(learner, statement, cheats.scaled(claim, given.scale))
        over_files(party, given.folder, given.timeout)
    except ProtocolError as error:
        print(f"stopped: {error}")
        return 1
    except (ValueError, OSError) as error:  # TimeoutError is an OSError
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    verdict = party.verdict if given.role == "prove" else vars(party.verdict)
    word = "accepted" if verdict["accepted"] else "aborted"
    print(f"{word}: {ascii(verdict['reason'])}; {learner.trainings} trainings")
    return 0 if verdict["accepted"] else 1


if __name__ == "__main__":
    sys.exit(main())
