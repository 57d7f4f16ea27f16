"""How an answer is scored against a reference: one module per family, each a function of two texts."""
