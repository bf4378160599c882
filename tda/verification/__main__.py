"""Prover and verifier as two processes that exchange messages through a folder.

python -m tda.verification verify problem.json folder
python -m tda.verification prove  problem.json folder --method least_squares --budget 800

``problem.json`` is a statement (:meth:`Statement.to_json`). The verifier exits with 0 if it accepts and with 1 if it
aborts; 2 means that the problem cannot be used, or that the other party did not appear.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np

from tda.task import use_threads
from tda.verification import cheats, session
from tda.verification.claims import FITS, fit
from tda.verification.learners import build
from tda.verification.messages import ProtocolError
from tda.verification.prover import Prover
from tda.verification.statement import Statement
from tda.verification.verifier import Verifier


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tda.verification", description=__doc__.splitlines()[0])
    parser.add_argument("role", choices=["verify", "prove"])
    parser.add_argument("problem", type=Path, help="a statement as JSON")
    parser.add_argument("folder", type=Path, help="where the messages are exchanged; empty at first")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds to wait for each message")
    parser.add_argument("--method", choices=sorted(FITS), default="least_squares", help="how the prover fits its claim")
    parser.add_argument("--budget", type=int, default=800, help="trainings that the prover spends on its claim")
    parser.add_argument("--seed", type=int, default=0, help="of the prover's own subsets")
    parser.add_argument("--scale", type=float, default=1.0, help="0.5 halves the scores: a cheat")
    given = parser.parse_args(arguments)
    use_threads()
    try:
        statement = Statement.of(json.loads(given.problem.read_text()))
        learner = build(statement.learner)
        if given.role == "verify":
            party = Verifier(learner, statement)
        else:
            rng = np.random.default_rng([given.seed, 31])
            claim = fit(given.method, learner, given.budget, statement.p, rng, statement.seed)
            party = Prover(learner, statement, cheats.scaled(claim, given.scale))
        session.over_files(party, given.folder, given.timeout)
    except ProtocolError as error:
        print(f"stopped: {error}")
        return 1
    except (ValueError, OSError) as error:  # TimeoutError is an OSError
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    accepted, reason = (
        (party.verdict.accepted, party.verdict.reason)
        if given.role == "verify"
        else (party.verdict["accepted"], party.verdict["reason"])
    )
    print(f"{'accepted' if accepted else 'aborted'}: {ascii(reason)}; {learner.trainings} trainings")
    return 0 if accepted else 1


if __name__ == "__main__":
    sys.exit(main())
