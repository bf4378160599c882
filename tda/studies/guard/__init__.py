"""GUARD (arXiv 2506.10946): unlearning in which every forgotten pair is pushed as hard as its alignment allows.

Other papers on unlearning bear the same name; the number says which is meant.
"""
