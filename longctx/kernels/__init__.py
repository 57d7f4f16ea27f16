"""Kernels that are compiled where they run, each a file with a reference in plain torch beside it or in its tests.

``few_rows``, ``few_queries``, ``tile_queries``, ``cluster_choice`` and ``steps`` are kernels; a next one is one like
them. Their code is written with ``loops``, ``elementary`` and the steps of ``blocks``, ``clusters``, ``ranges``,
``tiles``, ``dots`` and ``tile_blocks``, some of it in ``query_code``, ``choice_code`` and ``step_code``; ``machine``
compiles, checks and runs it.
"""
