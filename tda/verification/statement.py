"""What both parties agree on before anything is sent: the function, the promise, the sizes, the rules of the check."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from tda.verification.messages import canonical, sha256
from tda.verification.residual import check_rates, largest_share
from tda.verification.subsets import check_probability, check_rho

FORMS = ("interactive", "non-interactive")
AROUND = ("claim", "mean", "nothing")
SEEDING = ("one", "each")


@dataclass(frozen=True)
class Statement:
    """``learner``: its spec. ``eps``: the claim's MSE may exceed the best linear MSE by this much (outputs in [-1, 1]).
    ``delta``: how often the verifier may err, by the normal approximation that the sizes were planned with
    (:func:`tda.verification.plan`); the rule of the verdict does not use it.

    Sizes: ``fresh`` subsets M on which the verifier measures the claim, ``bases`` n of the residual estimate (4 n
    subsets), ``checks`` |C| of these retrained by the verifier (interactive form). 0 checks believe every answer: for
    experiments only.

    ``around``: what is subtracted from f before the residual is estimated. ``"nothing"`` is the text's estimator,
    ``"mean"`` subtracts the verifier's own mean of f, ``"claim"`` the claimed predictor, which is sound because the
    claim is committed to before the subsets are drawn. ``winsor``: share of the bases on each side whose terms are
    pulled in (ours), so that few lies cannot move the estimate; at most, and by default,
    :func:`tda.verification.residual.largest_share`, beyond which an error on one example would be hidden. 0 is the
    text's plain estimate, with ``constraint``: its non-negative fit.

    ``tolerance``: largest difference between an output and its retraining; ``None`` compares the hashes of the models.
    Lies within it are never noticed. Lies of size t on all trainings move the estimate by at most (8 / rho) t rms(g),
    g = f - claim, and terms in t^2: the four squares give 2 t, the products 2 (4 / rho - 1) t, as sum_t |c_t| = 4 / rho
    - 1. So at most eps rho / 32 is allowed, which is eps / 4 for rms(g) = 1.
    ``seeding``: ``"one"``: every training uses ``seed``, so f is a function; ``"each"``: every training has a seed of
    its own, drawn by the verifier, so f has training noise, the same on both sides of the comparison.

    Raises ``ValueError`` for values that are not allowed.
    """

    learner: dict
    eps: float
    delta: float = 0.05
    p: float = 0.5
    rho: float = 1 / 3
    fresh: int = 200
    bases: int = 600
    checks: int = 200
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
        for name, allowed in (("form", FORMS), ("around", AROUND), ("seeding", SEEDING)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r}; one of {allowed}.")
        for name, least in (("fresh", 2), ("bases", 2), ("checks", 0), ("seed", 0)):
            value = getattr(self, name)
            if type(value) is not int or value < least:
                raise ValueError(f"{name}={value!r}; give an integer of at least {least}.")
        if self.checks > 4 * self.bases:
            raise ValueError(f"checks={self.checks} of {4 * self.bases} trainings; at most all of them.")
        if self.tolerance is not None and not (isinstance(self.tolerance, float) and 0 <= self.tolerance < 1):
            raise ValueError(f"tolerance={self.tolerance!r}; None (compare hashes) or a float in [0, 1).")
        if self.tolerance is not None and self.tolerance > self.eps * self.rho / 32:
            raise ValueError(
                f"tolerance={self.tolerance}: lies within it could cover a false claim. At most eps * rho / 32 = "
                f"{self.eps * self.rho / 32:.2g}; raise eps, or compare hashes (None)."
            )
        if type(self.constraint) is not bool or not isinstance(self.learner, dict):
            raise ValueError("constraint is true or false, learner is the spec() of a learner.")
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

    @property
    def digest(self) -> str:
        """SHA-256 of the canonical JSON."""
        return sha256(canonical(self.to_json()))
