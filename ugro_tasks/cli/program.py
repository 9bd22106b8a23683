"""`ugro`: the tasks as a program of their own, the same that `inv` finds in tasks.py."""

import os
import signal
import sys

from invoke.program import Program

from .. import __version__
from .collection import ns


def main() -> None:
    """Run the task on the command line."""
    try:
        Program(name="ugro", binary="ugro", namespace=ns, version=__version__).run()
    except BrokenPipeError:
        # `ugro --list | head -1`: the reader has gone.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None


if __name__ == "__main__":
    main()
