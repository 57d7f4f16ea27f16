"""Kernels that are compiled where they run, with a reference in plain torch beside each; one file per kernel."""
