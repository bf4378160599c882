"""The versions of the residual estimate side by side, and what certainty costs: the prover's trainings against N, the
subsets that the residual needs against 1 / eps.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from tda.verification.cheats import shaken
from tda.verification.claims import Attribution, fit
from tda.verification.learners import Polynomial
from tda.verification.residual import largest_share, residual, slopes, winsorised
from tda.verification.subsets import draw, partners

STEPS = 60  # tenths of a decade that a budget may grow to


def estimates(
    learner: Polynomial, claim: Attribution, rho: float, n: int, rng: np.random.Generator
) -> dict[str, float]:
    """One estimate of B_{>=2} (of the first output) from ``n`` bases by every version.

    ``text``: independent partners, f as it is, non-negative fit; ``text, no constraint``; ``coupled``; ``claim
    subtracted``: coupled, f minus the claim; ``winsorised``: that, with terms pulled in by
    :func:`largest_share` (what the protocol uses).
    """
    bases, found = draw(rng, n, learner.n, learner.p), {}
    for coupled in (False, True):
        others = partners(rng, bases, learner.p, (0.0, rho, 2 * rho), coupled)
        at = np.concatenate([bases[None], others]).reshape(-1, learner.n)
        f = learner(at, np.zeros(len(at), int)).values
        g, f = (values.reshape(4, n, -1) for values in (f - claim.predict(at), f))
        if coupled:
            found["coupled"] = residual(f, rho).value[0]
            share = largest_share(rho, learner.p)
            found["claim subtracted"], found["winsorised"] = residual(g, rho).value[0], winsorised(g, rho, share)[0]
        else:
            found["text"], found["text, no constraint"] = (residual(f, rho, c).value[0] for c in (True, False))
    return found


def smallest_budget(
    learner: Polynomial, eps: float, rng: np.random.Generator, fits: int = 8, share: float = 0.95
) -> int:
    """Fewest trainings, in steps of a tenth of a decade from 1.2 N, with which a ``share`` of least-squares fits have
    an error below eps / 4. Raises ``ValueError`` if a million times as many are not enough.
    """
    best = learner.best()
    for step in range(STEPS):
        budget = int(1.2 * learner.n * 10 ** (step / 10))
        errors = [fit("least_squares", learner, budget, learner.p, rng).error(best).max() for _ in range(fits)]
        if np.quantile(errors, share) < eps / 4:
            return budget
    raise ValueError(f"eps={eps}: no budget up to {budget} gives an error below eps / 4; raise eps.")


def needed(learner: Polynomial, share: float, delta: float, rng: np.random.Generator, pilot: int = 20_000) -> dict:
    """Subsets that keep the errors below eps / 4 with probability 1 - ``delta`` for eps = ``share`` * B_1 (of a
    learner with B_3 > 0 and one test point), from measured variances: bases by three estimators, and fresh models.

    rho is the largest one whose leading bias 2 rho^2 B_3 stays below eps / 8. ``text``: independent partners, f as it
    is; ``coupled``; ``claim subtracted``: coupled, with a claim of error eps / 4 subtracted. A quarter of the
    variance is the fresh models', as in :func:`tda.verification.residual.plan`.
    """
    weights, z = learner.weights()[:, 0], stats.norm.ppf(1 - delta)
    eps = share * weights[1]
    rho = min(0.5, np.sqrt(eps / 8 / (2 * weights[3])))
    claim, unit = shaken(learner.best(), eps / 4, rng), (4 * z / eps) ** 2
    bases, found = draw(rng, pilot, learner.n, learner.p), {}
    for coupled in (False, True):
        others = partners(rng, bases, learner.p, (0.0, rho, 2 * rho), coupled)
        at = np.concatenate([bases[None], others]).reshape(-1, learner.n)
        f = learner(at, np.zeros(len(at), int)).values[:, 0]
        kinds = {"coupled": f, "claim subtracted": f - claim.predict(at)[:, 0]} if coupled else {"text": f}
        for name, g in kinds.items():
            g = g.reshape(4, pilot)
            terms = np.square(g).mean(0) - g[0] * (slopes(rho) @ g[1:])
            found[name] = float(terms.var() * unit * 4 / 3)
    return found | {"fresh models": float(np.square(g[0]).var() * unit * 4)}
