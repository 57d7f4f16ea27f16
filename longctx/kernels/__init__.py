"""Kernels that are compiled where they run, each a file with a reference in plain torch beside it.

``few_rows``, ``few_queries``, ``clusters`` and ``cluster_choice`` are kernels; a next one is a file like them. Their
code is written with ``loops`` and the steps of ``blocks`` and ``ranges``; ``machine`` compiles, checks and runs it.
"""
