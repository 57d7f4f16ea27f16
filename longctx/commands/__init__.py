"""What each command of ``longctx`` does; one file per command, imported when the command is called."""
