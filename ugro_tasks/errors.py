"""Every error a user can meet, and the exit code that tells a script which one it was.

    UgroError                     1   what fits none of these
    ├── UsageError                2   a flag or a name that cannot be used
    ├── ClusterFileError          3   the cluster file, all faults at once
    ├── JobNotFound               4   no job of that name
    ├── NotFit                    5   a health check failed; nothing was started
    ├── NodesBusy                 6   another job holds a node
    ├── JobFailed                 7   the training itself failed; the cause is in the record
    ├── LaunchFailed              8   the gang could not start and was undone
    ├── StopUnproven              9   a node could not show that the job is gone
    ├── EnvironmentFault         10   the training environment cannot be made or used
    ├── ToolMissing              11   a program that UGRO calls is not installed
    ├── RecordError              12   the experiment folder cannot be read or written
    ├── HostError                20   a host, whatever happened on the way to it
    │   ├── HostUnreachable      21   no route, refused, timed out, name unknown
    │   ├── HostKeyUnknown       22   known_hosts has no key for it
    │   ├── HostKeyChanged       23   known_hosts has another key for it
    │   ├── LoginRefused         24   reached, but no key was accepted
    │   └── NodeFault            25   logged in, but the node could not do as asked
    └── Interrupted             130   Ctrl-C

A job that was stopped on purpose ends `inv launch` and `inv attach` with 130 as well.
"""

from invoke.exceptions import Exit

from .plaintext import as_called, printable_lines


class UgroError(Exit):
    """One clear message and an exit code; Invoke prints the one and exits with the other.

    The message says what happened, where, and what to do next, in that order. It may quote what a node said: Invoke
    prints it, so control sequences are taken out here.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        super().__init__(as_called(printable_lines(message)), self.exit_code)

    def __str__(self) -> str:
        return self.text

    @property
    def text(self) -> str:
        """The message as a plain string, never None."""
        return self.message or type(self).__name__


class UsageError(UgroError):
    """A flag or a name that cannot be used."""

    exit_code = 2


class ClusterFileError(UgroError):
    """The cluster file cannot be used; the message lists every fault with its line."""

    exit_code = 3


class JobNotFound(UgroError):
    """No job of that name; the message lists the nearest names."""

    exit_code = 4


class NotFit(UgroError):
    """A health check failed."""

    exit_code = 5


class NodesBusy(UgroError):
    """Another job holds a node that was asked for."""

    exit_code = 6


class JobFailed(UgroError):
    """The training failed; the message holds the cause."""

    exit_code = 7


class LaunchFailed(UgroError):
    """The gang could not start; whatever had started was stopped again."""

    exit_code = 8


class StopUnproven(UgroError):
    """A node could not show that nothing of the job is left; the message names host and pids."""

    exit_code = 9


class EnvironmentFault(UgroError):
    """The training environment cannot be made or used."""

    exit_code = 10


class ToolMissing(UgroError):
    """A program that UGRO calls is not installed."""

    exit_code = 11


class RecordError(UgroError):
    """The experiment folder cannot be read or written."""

    exit_code = 12


class HostError(UgroError):
    """A host, whatever happened on the way to it or on it."""

    exit_code = 20

    def __init__(self, host: str, what: str, fix: str = "") -> None:
        super().__init__(f"{host}: {what}" + (f"\n    {fix}" if fix else ""))
        self.host, self.what, self.fix = host, what, fix


class HostUnreachable(HostError):
    """No route, refused, timed out, or its name is unknown."""

    exit_code = 21


class HostKeyUnknown(HostError):
    """known_hosts has no key for this host."""

    exit_code = 22


class HostKeyChanged(HostError):
    """known_hosts has another key for this host."""

    exit_code = 23


class LoginRefused(HostError):
    """The host was reached, but it accepted no key."""

    exit_code = 24


class NodeFault(HostError):
    """Logged in, but the node could not do what was asked."""

    exit_code = 25


class Interrupted(UgroError):
    """Ctrl-C, or a job that was stopped on purpose."""

    exit_code = 130


def by_exit_code(code: int, message: str) -> UgroError:
    """The error whose class has this exit code, as it stands in a job's record."""
    kinds = [*UgroError.__subclasses__(), *HostError.__subclasses__()]
    kind = next((kind for kind in kinds if kind.exit_code == code), UgroError)
    error = kind.__new__(kind)
    UgroError.__init__(error, message)  # the record has the whole message, whatever the class makes it of
    return error
