"""The verifier: asks, spot-checks by retraining, measures the claim on models of its own, and decides.

Interactive, messages 0 to 4: open -> commit -> queries -> answer -> verdict. Non-interactive, 0 to 2: open -> claim ->
verdict. ``open`` holds the statement and a hash of the verifier's coins.
"""

from __future__ import annotations

from tda.verification.coins import Coins
from tda.verification.judge import Verdict, decide, measure, read_answer, read_claim, spot_check
from tda.verification.learners import Learner
from tda.verification.messages import ProtocolError, decode, encode, expect, hexadecimal, keys, pack
from tda.verification.prover import check_learner
from tda.verification.statement import Statement


class Verifier:
    """One session: ``open()`` gives the first message, ``receive`` takes the prover's and returns the next;
    ``verdict`` is set when it has decided, once and for all. ``secret``: see :class:`Coins`.

    No message makes ``receive`` raise: what cannot be used ends in an abort with its reason.
    """

    def __init__(self, learner: Learner, statement: Statement, secret: bytes | None = None):
        check_learner(learner, statement)
        self.learner, self.statement = learner, statement
        self.coins = Coins(statement, learner.n, secret)
        self.session, self.number, self.last, self.due = self.coins.session, 0, "", "nothing"
        self.verdict: Verdict | None = None

    def open(self) -> bytes:
        """The first message. Raises ``ValueError`` if the session has been opened or is over."""
        if self.number or self.verdict:
            raise ValueError("this session has been opened; make a new Verifier for another one.")
        interactive = self.statement.form == "interactive"
        return self._send(
            "open",
            {"statement": self.statement.to_json(), "promise": self.coins.promise},
            "commit" if interactive else "claim",
        )

    def receive(self, raw: bytes) -> bytes:
        """The next message: the queries, or the verdict. After the verdict every message gets that verdict again."""
        if self.verdict is not None:
            return self._close(self.verdict)
        before = self.learner.trainings  # a prover may share the object: what he has trained is not counted here
        try:
            message = decode(raw)
            body = expect(message, self.session, self.number, self.due, self.last)
            self.last, self.number = message.digest, self.number + 1
            if self.due == "commit":
                self.committed = hexadecimal(keys(body, "commitment")["commitment"], "the commitment")
                return self._ask()
            if self.due == "answer":
                claim, given = read_answer(body, self.committed, self.learner, self.statement)
                spot_check(given, self.learner, self.statement, self.coins)
                values = given.values
            else:
                claim = read_claim(keys(body, "scores", "mean"), self.learner, self.statement.p)
                values = self.learner(*self.coins.pairs).values  # no prover to ask: all trainings are its own
            mse, best = measure(claim, values, self.learner, self.coins)
            accepted, reason = decide(mse, best, self.statement.eps)
        except ProtocolError as error:
            accepted, reason, mse, best = False, str(error), None, None
        except ValueError as error:  # its learner's: nothing that the message holds can make it train to nonsense
            accepted, reason, mse, best = False, f"the verifier could not train: {error}", None, None
        return self._close(Verdict(accepted, reason, self.learner.trainings - before, mse, best))

    def _ask(self) -> bytes:
        subsets, seeds = self.coins.pairs
        body = {"subsets": pack(subsets), "seeds": pack(seeds)}
        return self._send("queries", body, "answer")

    def _close(self, verdict: Verdict) -> bytes:
        self.verdict = verdict
        told = {"accepted": verdict.accepted, "reason": verdict.reason, "secret": self.coins.secret.hex()}
        return self._send("verdict", told, "nothing")

    def _send(self, kind: str, body: dict, due: str) -> bytes:
        raw, self.last = encode(self.session, self.number, kind, self.last, body)
        self.number, self.due = self.number + 1, due
        return raw
