"""The only room that imports transformers: loading, tokens, attention function, cache layers, probe, report."""
