"""The stored compiled document: a folder of checked files that is replaced whole or not at all."""
