"""Evaluation: retrieval, zero-shot classification, and the report of both."""

RESAMPLES = 1000
"""Of the bootstrap, for the intervals of one model's metrics."""
PAIRED_RESAMPLES = 2000
"""For intervals of differences, which are narrower: of two models, and of what is selected of N and chance."""
