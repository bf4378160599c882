"""Evaluation of scores: LDS with its noise ceiling, intervals, retrieval, tail patch, removal, tables and verdicts."""
