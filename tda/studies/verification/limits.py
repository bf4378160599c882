"""An upper limit of a claim's error, against a prover who knows everything but the verifier's coins.

Let g = f - claim, fixed before the bases are drawn. One base x with partners x_t (t = 0, rho, 2 rho) has the term

    T = g(x) sum_t c_t g(x_t) + leak * (mean of the four squares),      c: residual.slopes,

and E T >= (1 + leak) err for *every* f: the parabola finds B_0 + B_1 of g, which is err, up to
-sum_{k>=3} B_k rho^(k-1) (2^(k-1) - 2) (see :mod:`residual`), and the squares add leak * (err + B_2 + B_3 + ...), where
leak is the largest of these factors (2 rho^2 up to rho = 1/3). The bias is thereby paid in full, whatever its degrees.

*Assumed*: two things about the g of the claim in question. Its kurtosis, E g^4 <= kurtosis (E g^2)^2: the verifier
measures both moments on its ``fresh`` models and refuses a session where they do not fit, but a spike of probability q
is missed by all of them with probability (1 - q)^fresh, so below q = log(3 / delta) / fresh nothing is seen and nothing
promised. And what clipping hides (4.).

*Proved*, given these: a claim with err > eps is accepted with probability at most delta, a third of it for each of

1. *Lies.* Terms are clipped to X in [-level, level]. All that a lie about one base can do is to report X' where X is
   true: it gains X - X' <= level - X'. A base is retrained, all four of it, with probability
   pi = min(1, log(3 / delta) (level - X') / (n gain)), by coins that are older than the answer. Lies that gain more
   than ``gain`` in the mean all escape with probability prod (1 - pi) <= exp(-sum pi) < delta / 3, whatever they are.
2. *Chance.* Maurer and Pontil (2009): for n independent values in [-level, level] with sample variance s^2, except with
   probability delta / 3, E X <= mean X + c s + 14 level log(6 / delta) / (3 (n - 1)), c^2 = 2 log(6 / delta) / n. No
   distribution is assumed. Lies lower s as well: mean X + c max(s, 2 level c n / (n - 1)) grows with every X, so what
   is true lies below its value at max(X, X'), and there s^2 <= (mean X'^2 + 2 level gain) n / (n - 1).
3. *Spread.* E g^2 is known from fresh models only. Maurer (2003): the mean of M independent squares lies below
   (1 - t) E g^2 with probability at most exp(-M t^2 / (2 kurtosis)), so mean / (1 - t) is an upper limit of E g^2 but
   for delta / 3, with the t of :func:`shortfall`. Every E g^2 below is this limit, called ``square``.
4. *Tails*, the second assumption. With ``level`` = clip * :func:`clip_level` * square it is taken that
   E T - E X <= TAILS / clip^2 * square. That is not proved: an exact search over functions of 3 to 14 examples finds
   less than half of it (:mod:`tails`), for the rho, clip and kurtosis that a statement admits (:data:`RHO_RANGE`,
   :data:`CLIP_RANGE`, up to :data:`MOST`; at a kurtosis of 100 it finds two thirds). The rule before, 2^-clip for any
   rho and clip, was refuted by such a search: at rho = .02 and clip = 6 a function of 11 examples hides .029 E g^2, and
   2^-6 is .016.

Then err <= the limit of :func:`error_limit`. The number of bases is not part of the promise: a verdict from too few is
"no". It decides how often an honest prover is accepted (:func:`sizes`), and with ``gain`` the checks: about
4 log(3 / delta) level / gain, which is O(1 / eps) at fixed rho and clip. That is no asymptotic statement: where eps is
small against the residual, rho must shrink and clip grow, and at the ends of their ranges there is no room left.

Ours, but for the estimate and the idea of spot checks: Karchmer, Pawelczyk and Neel (2025).
"""

from __future__ import annotations

import itertools

import numpy as np
from scipy import stats

from tda.studies.verification.cube import check_probability, check_rho
from tda.studies.verification.residual import base_terms, check_rates, spread

KURTOSIS, MOST = 6.0, 60.0  # the least and the most that a statement admits
FRESH = 50  # models for one unit of kurtosis, at least
TAILS = 3.0  # over clip^2: what clipping is taken to hide of E g^2
RHO_RANGE, CLIP_RANGE = (0.1, 1 / 3), (2.0, 8.0)  # where that was searched
CLIPS = (2.0, 2.5, 3.0, 3.5, 4.0, 5.0, 6.0, 7.0, 8.0)  # that a plan chooses from
RHOS = (1 / 3, 0.25, 0.2, 0.15, 0.1)  # that a plan chooses from
MULTIPLES = (1, 1.5, 2, 3, 4, 6, 8)  # of the fewest fresh models, that a plan chooses from
PROVERS = 100  # trainings of the prover that a plan takes to be worth one of the verifier


def leak(rho: float) -> float:
    """The largest share of an energy B_k, k >= 3, by which the parabola can underestimate the error."""
    k = np.arange(3, 64)
    return float((check_rho(rho) ** (k - 1) * (2.0 ** (k - 1) - 2)).max())


def error_terms(values: np.ndarray, rho: float) -> np.ndarray:
    """[n, Q]: the term T of every base from g = ``values`` [4, n, Q] at the base and its partners, with E T >=
    (1 + leak) err.
    """
    return (1 + leak(rho)) * np.square(values).mean(0) - base_terms(values, rho)


def clip_level(rho: float, p: float, kurtosis: float = KURTOSIS) -> float:
    """The unit of the level, over E g^2: the largest term of an error on one example, and two deviations of Gaussian
    terms, times the root of kurtosis / 6.

    With v = max(p, 1 - p) / min(p, 1 - p), the largest square of a coordinate, an error z_i has the largest product
    1.5 (1 + v) / rho - 1 (:func:`residual.largest_share` lists them), where 1 + v = 1 / min(p, 1 - p).
    """
    top = 1.5 / (check_rho(rho) * min(check_probability(p), 1 - p)) - 1
    return float((top + 2 * np.sqrt(spread(rho))) * np.sqrt(kurtosis / KURTOSIS))


def level_of(square, statement):
    """The level that terms are clipped to, from the upper limit ``square`` of E g^2."""
    return statement.clip * clip_level(statement.rho, statement.p, statement.kurtosis) * square


def kurtosis(rest: np.ndarray) -> np.ndarray:
    """[Q]: E g^4 / (E g^2)^2 of ``rest`` [M, Q]."""
    squares = np.square(rest)
    return np.square(squares).mean(0) / np.square(squares.mean(0))


def own_kurtosis(p: float) -> float:
    """Of an error on one example: E z^4 = 1 / (p (1 - p)) - 3."""
    return 1 / (check_probability(p) * (1 - p)) - 3


def fewest(kurtosis: float, delta: float) -> int:
    """Fresh models that a statement needs: enough to measure the kurtosis, and E g^2 to t = 1/2."""
    return int(np.ceil(kurtosis * max(FRESH, 8 * np.log(3 / delta))))


def shortfall(fresh: int, kurtosis: float, delta: float) -> float:
    """t: a mean of ``fresh`` squares lies below (1 - t) E g^2 with probability at most ``delta`` / 3, given E g^4 <=
    ``kurtosis`` (E g^2)^2. Vacuous from 1 on.
    """
    return float(np.sqrt(2 * kurtosis * np.log(3 / delta) / fresh))


def square_of(measured, statement):
    """The upper limit of E g^2 from its mean ``measured`` on the fresh models: 3. of the module's text."""
    return measured / (1 - shortfall(statement.fresh, statement.kurtosis, statement.delta))


def upper_limit(mean, power, n: int, level, delta: float, gain: float):
    """Upper limit of E X of a term X in [-level, level]: 2. of the module's text, wrong with probability at most
    ``delta`` / 3. ``mean`` and ``power``: means of X' and X'^2 over ``n`` bases, by which lies gain at most ``gain``.
    """
    log, unbiased = np.log(6 / delta), n / (n - 1)
    c = np.sqrt(2 * log / n)
    deviation = np.maximum(np.sqrt((power + 2 * level * gain) * unbiased), 2 * level * c * unbiased)
    return mean + gain + c * deviation + 14 * level * log / (3 * (n - 1))


def chances(clipped, level, statement):
    """With which probability a base is retrained that reports ``clipped``: 1. of the module's text. No lies without a
    prover who trains: 0 in the non-interactive form.
    """
    s = statement
    if s.form == "non-interactive":
        return np.zeros_like(clipped)
    return np.minimum(1.0, np.log(3 / s.delta) * (level - clipped) / (s.bases * s.allowance * s.eps))


def error_limit(mean, power, square, statement):
    """The upper limit of err under a :class:`Statement`, from the means of X' and X'^2 and from the upper limit
    ``square`` of E g^2.

    Differences within the statement's tolerance t, on all trainings, move the mean by at most (8 / rho) (t rms(g) +
    t^2), which is a gain like that of the lies.
    """
    s = statement
    lies = s.form == "interactive"
    t = (s.tolerance or 0.0) if lies else 0.0
    gain = (s.allowance * s.eps if lies else 0.0) + 8 / s.rho * (t * np.sqrt(square) + t**2)
    above = upper_limit(mean, power, s.bases, level_of(square, s), s.delta, gain)
    return (above + TAILS / s.clip**2 * square) / (1 + leak(s.rho))


def sizes(
    eps: float,
    delta: float,
    best: float,
    p: float = 0.5,
    rho: float | None = None,
    points: int = 1,
    kurtosis: float = 3.0,
) -> dict[str, float]:
    """Options of a statement (``fresh``, ``bases``, ``rho``, ``kurtosis``, ``clip``, ``allowance``) under which an
    honest claim (err <= eps / 4) is accepted with probability 1 - delta in each of ``points`` outputs.

    ``best``: the residual B_{>=2} that is expected, ``kurtosis``: E g^4 / (E g^2)^2 of it. Both are guesses, and so is
    the variance of a term, :func:`residual.spread` times the root of kurtosis / 3: where they are wrong, honest provers
    are rejected more often, and nothing else. The statement admits a kurtosis a third above the guess and that of a
    single example. The room between eps and the limit of an honest claim without lies or noise is halved between lies
    and noise. ``fresh``, ``clip``, and ``rho`` unless it is given, are those that cost least, in trainings of the
    verifier and a hundredth of the prover's: a large rho allows more bias, a small one more noise; few fresh models
    leave E g^2 less certain. Raises ``ValueError`` where none leaves room.
    """
    check_rates(eps, delta)
    admitted = max(KURTOSIS, 4 / 3 * max(kurtosis, own_kurtosis(p)))
    if admitted > MOST:
        raise ValueError(
            f"a kurtosis of {admitted:.3g} would have to be admitted, and at most {MOST:g} is. Choose p "
            f"nearer to 1/2, or an output with shorter tails."
        )
    if not best > 0 or points < 1 or not kurtosis >= 1:
        raise ValueError(f"best={best}, points={points}, kurtosis={kurtosis}; positive numbers, a kurtosis from 1.")
    tried = list(itertools.product(RHOS if rho is None else (rho,), CLIPS, MULTIPLES))
    planned = [_planned(eps, delta, points, best, p, kurtosis, admitted, *one) for one in tried]
    if not any(planned):
        raise ValueError(
            f"no room: at rho={tried[-1][0]:.3g} the bias may be {leak(tried[-1][0]):.2g} of a residual of "
            f"{best / eps:.2g} eps, and what clipping hides comes on top. Lower rho, or raise eps."
        )
    return min(filter(None, planned), key=lambda pair: pair[0])[1]


def _planned(
    eps, delta, points, best, p, kurtosis, admitted, rho, clip, multiple
) -> tuple[float, dict[str, float]] | None:
    """``(cost, options)``, if there is room."""
    z, log, square = stats.norm.ppf(1 - delta / points), np.log(6 / delta), best + eps / 4
    fresh = int(np.ceil(multiple * fewest(admitted, delta)))
    high = square * (1 + z * np.sqrt((kurtosis - 1) / fresh))  # as the fresh models may measure it
    high /= 1 - shortfall(fresh, admitted, delta)
    room = 0.75 * (1 + leak(rho)) * eps - leak(rho) * best - TAILS / clip**2 * high
    if room <= eps / 20:
        return None
    gain, level = room / 2, clip * clip_level(rho, p, admitted) * high
    deviation = np.sqrt(spread(rho) * np.sqrt(max(kurtosis, 3.0) / 3)) + leak(rho) * np.sqrt(max(kurtosis, 3.0) - 1)
    deviation *= square
    noise = z * deviation + np.sqrt(2 * log * (deviation**2 + 2 * level * gain))
    root = (noise + np.sqrt(noise**2 + 4 * gain * 14 * level * log / 3)) / (2 * gain)
    bases, checks = int(np.ceil(root**2)) + 1, 4 * np.log(3 / delta) * level / gain
    options = {"fresh": fresh, "bases": bases, "rho": float(rho), "clip": clip, "allowance": float(gain / eps)}
    return float(fresh + checks + 4 * bases / PROVERS), options | {"kurtosis": admitted}
