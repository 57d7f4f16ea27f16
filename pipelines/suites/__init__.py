"""Published sets of questions about long texts: one module per format, each with ``cases(folder)``."""
