"""Programs under test that are not longctx: one file for each, run by the Python of an environment of its own."""
