"""STRIDE's machinery: a snapshot of the base model, steering operators, their fit, and the recovery of weights."""
