"""Verifiable attribution: a prover claims attribution scores, a verifier with few trainings accepts or rejects them.

Is the claimed linear predictor within eps of the *best* linear predictor of f(subset) in mean squared error? The
verifier estimates the best error without computing the predictor (:mod:`residual`), lets the prover do most of the
trainings, and checks a few of them in secret.

    subsets, residual        the p-biased cube, noise stability, the residual estimate
    learners, ridge, networks    functions that both parties can repeat
    claims, cheats           what is claimed, honestly and not
    messages, statement      what is sent, and what was agreed
    prover, verifier, coins, judge, session    the two parties
    rates                    binomial intervals

Two processes: ``python -m tda.verification``. Source: Karchmer, Pawelczyk and Neel (2025), *Efficiently Verifiable
Proofs of Data Attribution*: definitions, estimator, protocol and guarantees; it has neither code nor experiments.
Everything marked "ours" is not from there.
"""

from tda.verification import messages
from tda.verification.claims import FITS, Attribution, fit, registered
from tda.verification.judge import Verdict
from tda.verification.learners import Learner, Outputs, Polynomial, build
from tda.verification.messages import ProtocolError
from tda.verification.pilot import pilot
from tda.verification.prover import Prover
from tda.verification.rates import rate
from tda.verification.residual import plan, residual, spread
from tda.verification.session import audit, repeat, run
from tda.verification.statement import Statement
from tda.verification.verifier import Verifier

__all__ = [
    "FITS",
    "Attribution",
    "Learner",
    "Outputs",
    "Polynomial",
    "ProtocolError",
    "Prover",
    "Statement",
    "Verdict",
    "Verifier",
    "audit",
    "build",
    "fit",
    "messages",
    "pilot",
    "plan",
    "rate",
    "registered",
    "repeat",
    "residual",
    "run",
    "spread",
]
