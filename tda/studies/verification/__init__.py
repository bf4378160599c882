"""Verifiable attribution: a prover claims attribution scores, a verifier with few trainings accepts or rejects them.

Is the claimed linear predictor within eps of the *best* linear predictor of f(subset) in mean squared error? The
verifier estimates the best error without computing the predictor, lets the prover do most of the trainings, and
checks a few of them in secret. Each module imports those above it only:

    cube, residual    subsets, linear predictors of functions of them, the estimate of the best error, its sample sizes
    learner, digits   functions that both parties can repeat: known polynomials, models of digits
    messages          what is sent, and how it is read
    statement         what was agreed, and the verifier's coins
    prover, verifier  the two parties, a session, its audit
    cheats            provers that lie, and messages that are damaged on their way
    experiments       pilots, repeated sessions, rates, budgets

Two processes: ``python -m tda.studies.verification``. Source: Karchmer, Pawelczyk and Neel (2025), *Efficiently
Verifiable Proofs of Data Attribution*: definitions, estimator, protocol and guarantees; it has neither code nor
experiments. Everything marked "ours" is not from there.
"""
