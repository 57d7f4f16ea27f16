"""How much to draft and how much of it to verify: one file, one method."""
