"""Which parts of the text: splitters (text -> spans) and selectors (question, units -> scores)."""
