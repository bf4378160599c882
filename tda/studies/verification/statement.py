"""What both parties agree on before anything is sent, and the verifier's randomness."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import secrets
from dataclasses import dataclass

import numpy as np

from tda.studies.verification.cube import check_probability, check_rho, draw, with_partners
from tda.studies.verification.digits import Network, Pixels, Ridge
from tda.studies.verification.learner import Learner, Polynomial
from tda.studies.verification.limits import CLIP_RANGE, KURTOSIS, MOST, RHO_RANGE, fewest, own_kurtosis
from tda.studies.verification.residual import check_rates, largest_share

LEARNERS = {learner.kind: learner for learner in (Polynomial, Ridge, Pixels, Network)}
CHOICES = {
    "rule": ("limit", "first"),
    "form": ("interactive", "non-interactive"),
    "around": ("claim", "mean", "nothing"),
    "seeding": ("one", "each"),
}
LEAST = {"fresh": 2, "bases": 2, "checks": 0, "seed": 0}
FIRST = {"checks": None, "winsor": None, "around": "claim", "constraint": True}  # options of the first version


@dataclass(frozen=True)
class Statement:
    """``learner``: its spec. ``eps``: the claim's MSE may exceed the best linear MSE by this much (outputs in [-1, 1]).
    ``delta``: how often a claim with err > eps may be accepted, over all sessions that are opened.

    ``rule`` ``"limit"``: accept iff an upper limit of err lies below eps
    (:mod:`tda.studies.verification.limits`). Its delta is proved for lies, chance and the measured E g^2, given that
    g = f - claim has at most the admitted kurtosis, and that clipping hides at most what the limit adds. The verifier
    measures the kurtosis, but M fresh models do not see what happens with a probability below log(3 / delta) / M: about
    such a spike nothing is promised. ``"first"``: our first version, which a clever liar fools; chapter 32 shows how,
    and why it is kept.

    Sizes: ``fresh`` subsets M on which the verifier measures E g^2 of g = f - claim, ``bases`` n (4 n subsets, trained
    by the prover). Rule ``"limit"``: the verifier retrains bases at random, by what lies about them could gain
    (``checks`` stays None); ``kurtosis``: E g^4 / (E g^2)^2 that is admitted, for which ``fresh`` is at least
    :func:`tda.studies.verification.limits.fewest`; ``clip``: level of a term, from 2 to 8, in units of
    :func:`tda.studies.verification.limits.clip_level` times the upper limit of E g^2 (rho is from 0.1 to 1/3);
    ``allowance``: what lies that are likely to escape may gain, in units of eps. Rule ``"first"``: ``checks`` of the
    4 n subsets are retrained (200 unless given; 0 believes every answer), and the further options are ``around``,
    ``winsor`` and ``constraint``.

    *Silence.* A prover who sees that the answer will not do can fall silent, or lose his line. Of the sessions that he
    answers, a share of up to delta / P(answer) of false claims may then be accepted. So silence counts as a rejection:
    the promise is about opened sessions, and of k sessions about one claim any is accepted with probability at most
    k delta. Who lets a prover try again asks for delta / k.

    ``around`` (first version): what is subtracted from f before the residual is estimated. ``"nothing"`` is the text's
    estimator, ``"mean"`` subtracts the verifier's own mean of f, ``"claim"`` the claimed predictor, which is sound
    because the claim is committed to before the subsets are drawn. ``winsor``: share of the bases on each side whose
    terms are pulled in; at most, and by default, :func:`tda.studies.verification.residual.largest_share`, beyond which
    an error on one example would be hidden. 0 is the text's plain estimate, with ``constraint``: its non-negative fit.

    ``tolerance``: largest difference between an output and its retraining; ``None`` compares the hashes of the models.
    Lies within it are never noticed. Lies of size t on all trainings move the estimate by at most (8 / rho) t rms(g),
    g = f - claim, and terms in t^2: the four squares give 2 t, the products 2 (4 / rho - 1) t, as sum_t |c_t| = 4 / rho
    - 1. So at most eps rho / 32 is allowed, which is eps / 4 for rms(g) = 1; rule ``"limit"`` adds its share to the
    limit.
    ``seeding``: ``"one"``: every training uses ``seed``, so f is a function; ``"each"``: every training has a seed of
    its own, drawn by the verifier, so f has training noise, the same on both sides of the comparison.

    Raises ``ValueError`` for values that are not allowed.
    """

    learner: dict
    eps: float
    delta: float = 0.05
    p: float = 0.5
    rho: float = 1 / 3
    fresh: int = 300
    bases: int = 5000
    rule: str = "limit"
    kurtosis: float = 6.0
    clip: float = 3.0
    allowance: float = 0.25
    checks: int | None = None
    form: str = "interactive"
    around: str = "claim"
    winsor: float | None = None
    constraint: bool = True
    tolerance: float | None = None
    seeding: str = "one"
    seed: int = 0

    def __post_init__(self) -> None:
        check_rates(self.eps, self.delta)
        check_probability(self.p)
        check_rho(self.rho)
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}; one of {allowed}.")
        if self.rule == "first" and self.checks is None:
            object.__setattr__(self, "checks", 200)
        for name, least in LEAST.items():
            value = getattr(self, name)
            if (type(value) is not int or value < least) and not (name == "checks" and value is None):
                raise ValueError(f"{name}={value!r}; give an integer of at least {least}.")
        if self.rule == "first" and self.checks > 4 * self.bases:
            raise ValueError(f"checks={self.checks} of {4 * self.bases} trainings; at most all of them.")
        if type(self.constraint) is not bool or not isinstance(self.learner, dict):
            raise ValueError("constraint is true or false, learner is the spec() of a learner.")
        self._check_tolerance()
        if self.rule == "first":
            self._check_winsor()
        else:
            self._check_limit()

    def _check_limit(self) -> None:
        if not isinstance(self.kurtosis, float) or not max(KURTOSIS, own_kurtosis(self.p)) <= self.kurtosis <= MOST:
            raise ValueError(
                f"kurtosis={self.kurtosis!r}; a float from {KURTOSIS:g} to {MOST:g}, and from "
                f"{own_kurtosis(self.p):.3g}, that of an error on one example at p={self.p}. Change it, "
                f"or choose p nearer to 1/2."
            )
        needed = fewest(self.kurtosis, self.delta)
        if self.fresh < needed:
            raise ValueError(f"fresh={self.fresh} cannot measure a kurtosis of {self.kurtosis:.3g}; at least {needed}.")
        for name, (least, most) in (("rho", RHO_RANGE), ("clip", CLIP_RANGE)):
            value = getattr(self, name)
            if not isinstance(value, float) or not least <= value <= most:
                raise ValueError(
                    f"{name}={value!r}; a float from {least:.3g} to {most:.3g}, where what clipping hides was searched."
                )
        if not isinstance(self.allowance, float) or not 0 < self.allowance < 1:
            raise ValueError(f"allowance={self.allowance!r}; the share of eps lies strictly between 0 and 1.")
        changed = [name for name, default in FIRST.items() if getattr(self, name) != default]
        if changed:
            raise ValueError(f"{', '.join(changed)}: options of rule='first' only; leave them out, or name that rule.")

    def _check_tolerance(self) -> None:
        if self.tolerance is None:
            return
        if not isinstance(self.tolerance, float) or not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance={self.tolerance!r}; None (compare hashes) or a float in [0, 1).")
        if self.tolerance > self.eps * self.rho / 32:
            raise ValueError(
                f"tolerance={self.tolerance}: lies within it could cover a false claim. At most eps * rho / 32 = "
                f"{self.eps * self.rho / 32:.2g}; raise eps, or compare hashes (None)."
            )

    def _check_winsor(self) -> None:
        largest = largest_share(self.rho, self.p)
        if self.winsor is None:
            object.__setattr__(self, "winsor", largest)
        if isinstance(self.winsor, bool) or not isinstance(self.winsor, int | float) or not 0 <= self.winsor <= 0.25:
            raise ValueError(f"winsor={self.winsor!r}; the share on each side lies in [0, 0.25].")
        if self.winsor > largest * (1 + 1e-9):
            raise ValueError(
                f"winsor={self.winsor} cuts off the terms that show an error on one example. At rho={self.rho:.3g} and "
                f"p={self.p} at most {largest:.3g}: lower winsor (None takes that), or raise rho."
            )

    def to_json(self) -> dict:
        return dataclasses.asdict(self)

    @classmethod
    def of(cls, content: dict) -> Statement:
        """The statement of :meth:`to_json`. Raises ``ValueError`` for unknown or missing keys and bad values."""
        names = {f.name for f in dataclasses.fields(cls)}
        if not isinstance(content, dict) or not {"learner", "eps"} <= set(content) <= names:
            raise ValueError(f"a statement has the keys {sorted(names)}, learner and eps at least.")
        return cls(**content)


def build(spec: dict) -> Learner:
    """The learner of a :meth:`Learner.spec`. Raises ``ValueError`` for unknown kinds or options and for other data."""
    kind = spec.get("learner") if isinstance(spec, dict) else spec
    if not isinstance(spec, dict) or not isinstance(kind, str) or kind not in LEARNERS:
        raise ValueError(f"learner {kind!r} is unknown; there are {sorted(LEARNERS)}.")
    try:
        learner = LEARNERS[kind](**{k: v for k, v in spec.items() if k not in ("learner", "data")})
    except TypeError as error:
        raise ValueError(f"learner {kind!r}: {error}. Give the options that its spec() has.") from None
    if learner.spec().get("data") != spec.get("data"):
        raise ValueError(f"learner {kind!r}: its data here differ from those of the statement.")
    return learner


def check_learner(learner: Learner, statement: Statement) -> None:
    """Raises ``ValueError`` where a learner is not the statement's, or cannot promise the bits that its check
    compares.
    """
    if learner.spec() != statement.learner:
        raise ValueError("the learner is not the statement's; build it with build(statement.learner).")
    if statement.tolerance is None and not learner.exact and statement.form == "interactive":
        raise ValueError(
            f"learner {statement.learner['learner']!r} does not train to the same bits in other company; compare "
            f"outputs (give a tolerance, at most eps * rho / 32), or make it exact (network: at_once=1)."
        )


class Coins:
    """Subsets, seeds and places to check of one session with ``n`` examples.

    Each use hashes the ``secret`` (32 bytes, drawn unless given) with its own label, so that the subsets that are
    sent do not tell which of them are checked, although the generator behind them is not a cryptographic one. The
    secret is used once: the verdict reveals it, and anybody can replay the decision.
    """

    def __init__(self, statement: Statement, n: int, secret: bytes | None = None):
        self.statement, self.n = statement, n
        self.secret = secrets.token_bytes(32) if secret is None else secret
        if not isinstance(self.secret, bytes) or len(self.secret) != 32:
            raise ValueError("secret must be 32 bytes; leave it out to draw one.")

    @property
    def promise(self) -> str:
        """What is published before anything is claimed: the verifier cannot change its coins afterwards."""
        return hashlib.sha256(self.secret).hexdigest()

    @property
    def session(self) -> str:
        """Names the session."""
        return hashlib.sha256(self._key("session")).hexdigest()

    @functools.cached_property
    def pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """4 n subsets [4 n, N] (bases, then their partners of correlation 0, rho and 2 rho) and their seeds."""
        s, rng = self.statement, self._random("pairs")
        groups = with_partners(rng, draw(rng, s.bases, self.n, s.p), s.p, s.rho)
        return groups.reshape(-1, self.n), self._seeds(rng, 4 * s.bases)

    @functools.cached_property
    def fresh(self) -> tuple[np.ndarray, np.ndarray]:
        """The subsets on which the verifier measures the claim, and their seeds."""
        rng = self._random("fresh")
        return draw(rng, self.statement.fresh, self.n, self.statement.p), self._seeds(rng, self.statement.fresh)

    def checked(self, chances: np.ndarray) -> np.ndarray:
        """Places of the bases that are retrained, each with its chance [n], and of their partners (rule "limit")."""
        bases = np.flatnonzero(self._random("checks").random(self.statement.bases) < chances)
        return (bases + self.statement.bases * np.arange(4)[:, None]).ravel()

    @property
    def checks(self) -> np.ndarray:
        """Places among the pairs that are retrained, all different (rule "first")."""
        return self._random("checks").choice(4 * self.statement.bases, self.statement.checks, replace=False)

    def _key(self, label: str) -> bytes:
        return hashlib.sha256(self.secret + label.encode()).digest()

    def _random(self, label: str) -> np.random.Generator:
        return np.random.default_rng(int.from_bytes(self._key(label), "big"))

    def _seeds(self, rng: np.random.Generator, count: int) -> np.ndarray:
        if self.statement.seeding == "one":
            return np.full(count, self.statement.seed)
        return rng.integers(0, 2**31, count)
