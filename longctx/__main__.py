"""``python -m longctx`` is the command ``longctx``."""

from longctx.cli import main

if __name__ == "__main__":
    main()
