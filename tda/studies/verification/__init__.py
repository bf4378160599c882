"""Verifiable attribution: a prover claims attribution scores, a verifier with few trainings accepts or rejects them.

Is the claimed linear predictor within eps of the *best* linear predictor of f(subset) in mean squared error? The
verifier bounds that distance without computing the best predictor, lets the prover do most of the trainings, and
checks in secret those that could have gained most by a lie. Each module imports those above it only:

    cube, residual    subsets, linear predictors of functions of them, the estimate of the best error, its sample sizes
    limits, tails     the upper limit of a claim's error, what it proves and assumes, sizes; a search for the latter
    learner, digits   functions that both parties can repeat: known polynomials, models of digits
    messages          what is sent, and how it is read
    statement         what was agreed, and the verifier's coins
    prover, verifier  the two parties, a session, its audit
    cheats, attacks   provers that lie, messages that are damaged on their way; the best liars and fast sessions
    experiments       pilots, repeated sessions, rates, budgets

Two processes: ``python -m tda.studies.verification``. Source: Karchmer, Pawelczyk and Neel (2025), *Efficiently
Verifiable Proofs of Data Attribution*: definitions, estimator, protocol and guarantees; it has neither code nor
experiments. Everything marked "ours" is not from there. A statement names one of two rules: the limit, or our first
version, which stays because chapter 32 shows how a liar fools it.
"""
