"""What the chapters measure with: a function whose truth is known, pilots of others, repeated sessions, rates, versions
of the residual estimate side by side, and what certainty costs.
"""

from __future__ import annotations

import numpy as np
from scipy import stats

from tda.evaluation import rates
from tda.evaluation.intervals import Interval
from tda.studies.verification import cheats
from tda.studies.verification.attacks import Pool, meet
from tda.studies.verification.cube import Attribution, draw, with_partners
from tda.studies.verification.learner import Learner, Polynomial
from tda.studies.verification.limits import kurtosis, sizes
from tda.studies.verification.prover import Prover, fit, least_squares
from tda.studies.verification.residual import attained, base_terms, bias, largest_share, plan, residual, winsorised
from tda.studies.verification.statement import Statement, build
from tda.studies.verification.verifier import Verdict, Verifier, run

ENERGY, EXAMPLES, RHO, DELTA = (0.1, 1.0, 0.06, 0.03, 0.01), 60, 1 / 3, 0.05  # of the function in chapters 31 and 32
STEPS = 60  # tenths of a decade that a budget may grow to
Sessions = list[tuple[Verdict, Attribution]]


def world(
    n: int = EXAMPLES, energy=ENERGY, share: float = 0.2, p: float = 0.5, rule: str = "limit", rho: float | None = RHO,
    monomials: int | None = None, **options,
) -> tuple[Polynomial, Statement, Attribution]:  # fmt: skip
    """``(learner, statement, best attribution)`` of a polynomial; eps = ``share`` * B_1, sizes by :func:`sizes` (which
    also chooses rho if that is None), or for the first version by :func:`plan`, which is told the residual and its
    bias. Further options go to :class:`Statement`.
    """
    learner = Polynomial(n, p, energy, monomials=monomials)
    weights, best = learner.weights()[:, 0], learner.best()
    eps, left = float(share * weights[1]), float(weights[2:].sum())
    if rule == "limit":
        subsets = draw(np.random.default_rng([n, 33]), 4000, n, p)
        rest = learner(subsets, np.zeros(len(subsets), int)).values - best.predict(subsets)
        guessed = float(kurtosis(rest)[0])
        planned = sizes(eps, DELTA, left, p, rho, kurtosis=guessed)
    else:
        fresh, bases = plan(eps, DELTA, left, RHO, off=bias(weights[:, None], RHO)[0])
        planned = {"fresh": fresh, "bases": bases, "checks": 200, "rho": RHO}
    planned |= {"rule": rule, "p": p}
    return learner, Statement(learner.spec(), eps, DELTA, **(planned | options)), best


def pilot(
    learner: Learner, rng: np.random.Generator, share: float = 0.2, delta: float = DELTA, p: float = 0.5,
    budget: int = 5000, most: int = 3000, rule: str = "limit", **options,
) -> tuple[Statement, Attribution, np.ndarray]:  # fmt: skip
    """``(statement, reference, residual [Q])`` from ``budget`` trainings on random subsets with the options' ``seed``.

    eps is ``share`` of the smallest output variance, so that it means something; ``reference`` is a least-squares
    fit, a stand-in for the best predictor; the residual B_{>=2} is the fit's mean square corrected for its N + 1 free
    parameters, and sizes follow from the largest one by :func:`sizes`, with at most ``most`` bases: where that cuts the
    plan, honest provers are rejected more often. In the first version sizes follow by :func:`plan` at rho = 1/3, and
    where ``most`` cuts them, the statement's ``delta`` is the larger one that they attain. Further options go to
    :class:`Statement`. Raises ``ValueError`` for budgets up to N + 1, for an output that does not vary, if no rho
    leaves room, and if ``most`` bases decide nothing in the first version.
    """
    free = learner.n + 1
    if budget <= free:
        raise ValueError(f"budget={budget} for {learner.n} examples; a pilot needs more than N + 1 trainings.")
    subsets = draw(rng, budget, learner.n, p)
    f = learner(subsets, np.full(budget, options.get("seed", 0))).values
    if not f.var(0).min() > 0:
        raise ValueError("an output does not vary with the subset: there is nothing to attribute. Raise the bound.")
    reference = least_squares(subsets, f, p)
    left = np.square(f - reference.predict(subsets)).sum(0) / (budget - free)
    eps, largest = float(share * f.var(0).min()), float(left.max())
    if rule == "limit":
        guessed = float(kurtosis(f - reference.predict(subsets)).max())
        planned = sizes(eps, delta, largest, p, None, learner.points, guessed)
        planned["bases"] = min(planned["bases"], most)
    else:
        fresh, bases = plan(eps, delta, largest, RHO, points=learner.points)
        if bases > most:
            bases, delta = most, attained(eps, largest, RHO, most, learner.points)
        planned = {"fresh": fresh, "bases": bases, "rho": RHO}
    planned |= {"rule": rule, "p": p}
    return Statement(learner.spec(), eps, delta, **(planned | options)), reference, left


def repeat(
    statement: Statement, claim, runs: int, seed: int = 0, alter=None, learner: Learner | None = None
) -> Sessions:
    """``(verdict, claim)`` of ``runs`` independent sessions, for measuring rates; the same ``seed`` repeats them.

    ``claim`` is an :class:`Attribution` or ``claim(rng)`` that makes one; ``alter(rng, claim)`` makes what changes
    the answer (:mod:`tda.studies.verification.cheats`). Both parties share one ``learner`` object (built from the
    statement unless given), so ``trainings`` of the verdicts count the verifier's only.
    """
    shared, sessions = learner or build(statement.learner), []
    for i in range(runs):
        rng = np.random.default_rng([seed, 32, i])
        verifier = Verifier(shared, statement, rng.bytes(32))
        claimed = claim(rng) if callable(claim) else claim
        prover = Prover(shared, statement, claimed, alter(rng, claimed) if alter else None, rng.bytes(32).hex())
        sessions.append((run(verifier, prover)[0], claimed))
    return sessions


def duel(learner: Polynomial, statement: Statement, runs: int, rng, share=1.02, count: int = 20_000, pools=4) -> list:
    """What the best liar achieves, and the honest beside him: a dict for each shape of a claim's error.

    The liar's claim has the error ``share`` * eps, the honest one eps / 4, the most that is promised to pass: on all
    examples alike, or on one. ``accepted`` and ``honest`` are intervals of ``runs`` sessions, shared among ``pools``
    pools of ``count`` bases, whose common noise is taken out (:mod:`~tda.studies.verification.attacks`); ``silent``:
    accepted among the quarter of the sessions in which the liar's hope is highest, as if he had fallen silent in the
    others.
    """
    drawn, lines, best = [Pool.of(learner, statement, count, rng) for _ in range(pools)], [], learner.best()
    each = -(-runs // pools)
    for shape, members in (("all examples", learner.n), ("one example", 1)):
        size = np.sqrt(statement.eps / (learner.p * (1 - learner.p) * members))
        sides = {}
        for lying, part in ((True, share), (False, 0.25)):
            claim = cheats.boosted(best, np.arange(members), np.sqrt(part) * size)
            energy = np.concatenate([[0.0, part * statement.eps], learner.weights()[2:, 0]])
            sides[lying] = [s for pool in drawn for s in meet(pool, claim, statement, each, rng, lying, energy)]
        met, honest = sides[True], sides[False]
        hopeful = sorted(met, key=lambda session: -session.hope)[: -(-len(met) // 4)]
        line = {"shape": shape, "lies": np.mean([s.lies for s in met]), "checks": np.mean([s.checks for s in honest])}
        for name, some in (("accepted", met), ("honest", honest), ("silent", hopeful)):
            line[name] = rate([session.accepted for session in some])
        lines.append(line)
    return lines


def rate(happened, runs: int | None = None, level: float = 0.95) -> Interval:
    """Share of ``happened`` (booleans, or a count of ``runs``) with the exact binomial interval of Clopper and Pearson.

    Raises ``ValueError`` without runs, or for a count outside [0, runs].
    """
    if runs is None:
        happened = np.asarray(happened, dtype=bool)
        happened, runs = int(happened.sum()), len(happened)
    if runs < 1 or not 0 <= happened <= runs:
        raise ValueError(f"{happened} of {runs} runs; a rate needs at least one run and a count between 0 and all.")
    return rates.rate(happened, runs, level)


def accepted(sessions: Sessions, level: float = 0.95) -> Interval:
    """The :func:`rate` at which the claims of these sessions were accepted."""
    return rate([verdict.accepted for verdict, _ in sessions], level=level)


def caught(share: float, places: int, checks: int) -> tuple[float, float]:
    """Probability that ``checks`` different places out of ``places`` hit a share of lies: ``(exact, 1 - (1 -
    share)^checks)``.

    Drawing without replacement finds them a little more often than the second, usual formula says.
    """
    lies = round(share * places)
    return float(1 - stats.hypergeom.pmf(0, places, lies, checks)), 1 - (1 - share) ** checks


def _outputs(learner: Polynomial, bases: np.ndarray, rho: float, coupled: bool, claim: Attribution, rng):
    """f, and f minus the claim, [4, M, Q] at the bases and their partners."""
    subsets = with_partners(rng, bases, learner.p, rho, coupled).reshape(-1, learner.n)
    f = learner(subsets, np.zeros(len(subsets), int)).values
    return tuple(values.reshape(4, len(bases), -1) for values in (f, f - claim.predict(subsets)))


def estimates(
    learner: Polynomial, claim: Attribution, rho: float, n: int, rng: np.random.Generator
) -> dict[str, float]:
    """One estimate of B_{>=2} (of the first output) from ``n`` bases by every version.

    ``text``: independent partners, f as it is, non-negative fit; ``text, no constraint``; ``coupled``; ``claim
    subtracted``: coupled, f minus the claim; ``winsorised``: that, with terms pulled in by
    :func:`largest_share` (what the protocol uses).
    """
    bases = draw(rng, n, learner.n, learner.p)
    independent, _ = _outputs(learner, bases, rho, False, claim, rng)
    coupled, rest = _outputs(learner, bases, rho, True, claim, rng)
    return {
        "text": residual(independent, rho).value[0],
        "text, no constraint": residual(independent, rho, constraint=False).value[0],
        "coupled": residual(coupled, rho).value[0],
        "claim subtracted": residual(rest, rho).value[0],
        "winsorised": winsorised(rest, rho, largest_share(rho, learner.p))[0],
    }


def smallest_budget(learner: Polynomial, eps: float, rng: np.random.Generator, fits: int = 8) -> int:
    """Fewest trainings, in steps of a tenth of a decade from 1.2 N, with which 95 % of least-squares fits have an error
    below eps / 4. Raises ``ValueError`` if a million times as many are not enough.
    """
    best = learner.best()
    for step in range(STEPS):
        budget = int(1.2 * learner.n * 10 ** (step / 10))
        errors = [fit("least_squares", learner, budget, learner.p, rng).error(best).max() for _ in range(fits)]
        if np.quantile(errors, 0.95) < eps / 4:
            return budget
    raise ValueError(f"eps={eps}: no budget up to {budget} gives an error below eps / 4; raise eps.")


def subsets_needed(
    learner: Polynomial, share: float, delta: float, rng: np.random.Generator, pilot: int = 20_000
) -> dict[str, float]:
    """Subsets that keep the errors below eps / 4 with probability 1 - ``delta`` for eps = ``share`` * B_1 (of a
    learner with B_3 > 0 and one test point), from measured variances: bases by three estimators, and fresh models.

    rho is the largest one whose leading bias 2 rho^2 B_3 stays below eps / 8. ``text``: independent partners, f as it
    is; ``coupled``; ``claim subtracted``: coupled, with a claim of error eps / 4 subtracted. A quarter of the
    variance is the fresh models', as in :func:`plan`.
    """
    weights, z = learner.weights()[:, 0], stats.norm.ppf(1 - delta)
    eps = share * weights[1]
    rho = min(0.5, np.sqrt(eps / 8 / (2 * weights[3])))
    claim, unit = cheats.shaken(learner.best(), eps / 4, rng), (4 * z / eps) ** 2
    bases = draw(rng, pilot, learner.n, learner.p)
    independent, _ = _outputs(learner, bases, rho, False, claim, rng)
    coupled, rest = _outputs(learner, bases, rho, True, claim, rng)
    by_version = {"text": independent, "coupled": coupled, "claim subtracted": rest}
    needed = {name: float(base_terms(g, rho).var() * unit * 4 / 3) for name, g in by_version.items()}
    return needed | {"fresh models": float(np.square(rest[0]).var() * unit * 4)}
