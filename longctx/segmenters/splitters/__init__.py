"""Splitters: one file, one way to tile a text with spans."""
