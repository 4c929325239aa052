"""Synthesised speech to look at and listen to: one HTML page."""
