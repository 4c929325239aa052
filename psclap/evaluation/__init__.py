"""Evaluation: retrieval, zero-shot classification, and the report of both."""
