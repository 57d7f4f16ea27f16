"""The boundary of the command line: what goes wrong below becomes one message on stderr and an exit code.

There is no traceback for what a user, a file or a machine can cause. Knows no command.
"""

from __future__ import annotations

import errno
from typing import Any

import typer
from typer.core import TyperGroup

from longctx.errors import DoesNotFit, Interrupted, LongctxError

_MEMORY = ("can't allocate memory", "out of memory", "not enough memory")


class Guarded(TyperGroup):
    """Commands whose failures end in a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except (KeyboardInterrupt, Interrupted):
            raise _ended("stopped.", Interrupted.exit_code) from None
        except LongctxError as error:
            raise _ended(str(error), error.exit_code) from None
        except BrokenPipeError:
            raise  # typer ends quietly: whoever read the output has gone
        except OSError as error:
            where = f"{error.filename}: " if error.filename is not None else ""
            raise _ended(f"{where}{error.strerror or error}.{_remedy(error)}", 1) from None
        except (MemoryError, RuntimeError) as error:
            if isinstance(error, RuntimeError) and not any(sign in str(error).lower() for sign in _MEMORY):
                raise
            said = "the memory of this machine does not hold the work. `longctx plan` says what a text needs."
            raise _ended(said, DoesNotFit.exit_code) from None


def _ended(said: str, code: int) -> typer.Exit:
    from longctx.commands.screen import failure  # numpy comes with it

    failure(said)
    return typer.Exit(code)


def _remedy(error: OSError) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return " Free some space there, or name another place; LONGCTX_CACHE is that of what is kept between runs."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return " Choose a place that can be written, or change its permissions."
    return ""
