"""Selectors: one file, one way to score the units of a text for a question."""
