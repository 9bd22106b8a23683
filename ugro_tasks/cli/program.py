"""The program `ugro`: the tasks of tasks.py, callable without `inv`."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import invoke.config
import invoke.exceptions
from invoke.collection import Collection
from invoke.parser.argument import Argument
from invoke.program import Program
from invoke.util import helpline

from .. import __version__
from ..errors import UsageError
from .collection import ns
from .command_line import reading, typed

# Invoke's flags for local commands; UGRO's run on nodes, by argv, without a terminal or a shell.
NOT_OFFERED = {
    "command-timeout", "echo", "hide", "list-depth", "prompt-for-sudo-password", "pty", "warn-only", "write-pyc",
}  # fmt: skip
GROUPS = ("start here", "run", "look", "cluster")
UNKNOWN = re.compile(r"No idea what '(.*)' is!")
# Not invoke.py: `ugro` must not run the code of the folder it is called in.
_YAML_ERROR: type[Exception] = invoke.config.yaml.YAMLError  # type: ignore[attr-defined]  # vendored
CONFIGURATION = ("invoke.yaml", "invoke.yml", "invoke.json")


class UgroProgram(Program):
    """Invoke's program with our parser, our help and our exit codes."""

    def __init__(self, namespace: Collection = ns) -> None:
        super().__init__(
            name="ugro", binary="ugro", namespace=namespace, version=__version__
        )

    def run(self, argv: list[str] | None = None, exit: bool = True) -> None:  # noqa: A002
        """Run the tasks on the command line; see invoke.Program."""
        words = typed() if argv is None else list(argv)
        with reading("ugro", words[1:]):
            super().run(words, exit=exit)

    # ---- parsing ----

    def core_args(self) -> list[Argument]:
        """Return those of Invoke's own flags that UGRO offers."""
        offered = [
            argument
            for argument in super().core_args()
            if argument.names[0] not in NOT_OFFERED
        ]
        for argument in offered:
            if argument.names[0] == "dry":
                argument.help = "Show what would be done, and do nothing."
        return offered

    def parse_core_args(self) -> None:
        """Parse the flags before the task; flags not offered get their defaults."""
        super().parse_core_args()
        for argument in super().core_args():
            if argument.names[0] in NOT_OFFERED:
                self.core[0].add_arg(argument)

    def parse_core(self, argv: list[str] | None) -> None:
        """Parse the command line up to the task."""
        with _explained(self._core_flags):
            super().parse_core(argv)

    def parse_collection(self) -> None:
        """Load the tasks, and Invoke's configuration in the current folder.

        Invoke's Program loads that only beside a tasks.py.
        """
        super().parse_collection()
        folder = Path.cwd()
        if any((folder / name).exists() for name in CONFIGURATION):
            self.config.set_project_location(str(folder))
            with _readable(folder):
                self.config.load_project()

    def update_config(self, merge: bool = True) -> None:
        """Apply the flags, and the file given by --config."""
        with _readable(self.args.config.value):
            super().update_config(merge)

    def parse_tasks(self) -> None:
        """Parse the task and its flags."""
        with _explained(self._task_words):
            super().parse_tasks()

    def parse_cleanup(self) -> None:
        """Answer --help, --list and --complete."""
        with _explained(self._task_words):
            if self.args.complete.value:
                from .completion import complete  # late: only a shell asks for it

                for candidate in complete(
                    self.collection, self.initial_context, self.core.remainder
                ):
                    print(candidate)  # noqa: T201
                raise invoke.exceptions.Exit
            super().parse_cleanup()

    def _core_flags(self, _error: invoke.exceptions.ParseError) -> Iterable[str]:
        return self.initial_context.flags

    def _task_words(self, error: invoke.exceptions.ParseError) -> Iterable[str]:
        flags: list[str] = []
        if error.context:
            flags = [*error.context.flags, *error.context.inverse_flags]
        return [*flags, *self.collection.task_names, *self.initial_context.flags]

    # ---- help ----

    def list_tasks(self) -> None:
        """Print the tasks in the format given by --list-format."""
        if self.list_format not in {"flat", "nested", "json"}:
            raise invoke.exceptions.Exit(
                f"--list-format {self.list_format}: use flat, nested or json",
                code=UsageError.exit_code,
            )
        super().list_tasks()

    def list_flat(self) -> None:
        """Print the tasks by group."""
        for group in GROUPS:
            members = [
                (name, helpline(self.collection[name]))
                for name in self.collection.task_names
                if self.collection[name].group == group
            ]
            if members:
                print(f"{group}:")  # noqa: T201
                self.print_columns(members)


@contextlib.contextmanager
def _readable(where: object) -> Iterator[None]:
    try:
        yield
    except (_YAML_ERROR, ValueError, OSError, TypeError, AttributeError) as error:
        raise invoke.exceptions.Exit(
            f"{where}: Invoke's configuration there cannot be read: {error}",
            code=UsageError.exit_code,
        ) from error


class _explained:  # noqa: N801
    """A context that turns a parse error into one line with a suggestion and exit code 2."""

    def __init__(
        self, known: Callable[[invoke.exceptions.ParseError], Iterable[str]]
    ) -> None:
        self.known = known

    def __enter__(self) -> None:
        return None

    def __exit__(
        self, _kind: object, error: BaseException | None, _traceback: object
    ) -> None:
        if not isinstance(error, invoke.exceptions.ParseError):
            return
        message = str(error)
        unknown = UNKNOWN.fullmatch(message)
        if unknown:
            message += f" {_suggestion(unknown[1], self.known(error))}"
        elif error.context is not None and error.context.name:
            message += f" See: ugro --help {error.context.name}"
        raise invoke.exceptions.Exit(message, code=UsageError.exit_code) from error


def _suggestion(word: str, known: Iterable[str]) -> str:
    import difflib  # late: only a mistake needs it

    is_flag = word.startswith("-")
    alike = [name for name in known if name.startswith("-") == is_flag]
    close = difflib.get_close_matches(word, alike, n=1)
    if close:
        return f"Did you mean {close[0]}?"
    return "See: ugro --help"


def _reopen_closed_streams() -> None:
    """Open the null device in place of a closed standard stream, as after `ugro launch >&-`.

    Else Python has no such stream, and the next file to be opened would be in its place for every child.
    """
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, descriptor)
            if null != descriptor:
                os.close(null)
            mode = "r" if descriptor == 0 else "w"
            setattr(sys, name, open(descriptor, mode, closefd=False))  # noqa: SIM115


def main() -> None:
    """Run the tasks on the command line."""
    _reopen_closed_streams()
    try:
        try:
            UgroProgram().run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe: `ugro --list | head -1`.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise SystemExit(128 + signal.SIGPIPE) from None


if __name__ == "__main__":
    main()
