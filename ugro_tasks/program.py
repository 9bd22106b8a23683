"""`ugro`: the tasks as a program of their own, the same that `inv` finds in tasks.py."""

from invoke.program import Program

from . import ns
from .version import __version__


def main() -> None:
    """Run the task on the command line."""
    Program(name="ugro", binary="ugro", namespace=ns, version=__version__).run()


if __name__ == "__main__":
    main()
