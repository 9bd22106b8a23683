"""Every error a user can meet, with the exit code by which a script tells them apart.

    UgroError                     1   any other error
    ├── UsageError                2   a flag or a name that cannot be used
    ├── ClusterFileError          3   the cluster file, all faults at once
    ├── JobNotFound               4   no job of that name
    ├── NotFit                    5   a health check failed; nothing was started
    ├── NodesBusy                 6   another job holds a node
    ├── JobFailed                 7   the training itself failed; the cause is in the record
    ├── LaunchFailed              8   the gang could not start and was undone
    ├── StopUnproven              9   a node could not show that the job is gone
    ├── EnvironmentFault         10   the training environment cannot be made or used
    ├── ToolMissing              11   a required program is not installed
    ├── RecordError              12   the experiment folder cannot be read or written
    │   └── NotSigned            13   a job that this user did not launch here
    ├── NotGathered              14   the job succeeded, but not all of it is here
    ├── HostError                20   any other trouble with a host
    │   ├── HostUnreachable      21   no route, refused, timed out, name unknown
    │   ├── HostKeyUnknown       22   known_hosts has no key for it
    │   ├── HostKeyChanged       23   known_hosts has another key for it
    │   ├── LoginRefused         24   reached, but no key was accepted
    │   └── NodeFault            25   logged in, but the node could not do as asked
    │       └── StreamFault      26   it cannot send what a rank has written
    └── Interrupted             130   Ctrl-C

A job that was stopped on purpose ends `inv launch` and `inv attach` with 130 as well. `JobEnded`
and `SeveralErrors` represent other errors and take their exit code.
"""

from collections.abc import Iterable

from .text import printable_lines


class UgroError(Exception):
    """An error with one clear message and an exit code.

    The message says what happened, where, and what to do next, in that order. It may quote output
    of a node, so terminal control sequences are removed here.
    """

    exit_code = 1

    def __init__(self, message: str) -> None:
        self.text = printable_lines(message) or type(self).__name__
        super().__init__(self.text)


class UsageError(UgroError):
    """A flag or a name that cannot be used."""

    exit_code = 2


class ClusterFileError(UgroError):
    """The cluster file cannot be used; the message lists every fault with its line."""

    exit_code = 3


class JobNotFound(UgroError):
    """No job has that name; the message lists the nearest names."""

    exit_code = 4


class NotFit(UgroError):
    """A health check failed."""

    exit_code = 5


class NodesBusy(UgroError):
    """Another job holds a requested node."""

    exit_code = 6


class JobFailed(UgroError):
    """The training failed; the message holds the cause."""

    exit_code = 7


class LaunchFailed(UgroError):
    """The gang could not start; every started rank was stopped again."""

    exit_code = 8


class StopUnproven(UgroError):
    """A node could not prove that no process of the job is left; the message names host and
    pids.
    """

    exit_code = 9


class EnvironmentFault(UgroError):
    """The training environment cannot be made or used."""

    exit_code = 10


class ToolMissing(UgroError):
    """A required program is not installed."""

    exit_code = 11


class RecordError(UgroError):
    """The experiment folder cannot be read or written."""

    exit_code = 12


class NotSigned(RecordError):
    """A job that this user neither launched on this machine nor adopted."""

    exit_code = 13


class NotGathered(UgroError):
    """The job succeeded, but not all of its logs, metrics and outputs are here; `inv gather` fetches them."""

    exit_code = 14


class HostError(UgroError):
    """Trouble on the way to a host or on it."""

    exit_code = 20

    def __init__(self, host: str, what: str, fix: str = "") -> None:
        message = f"{host}: {what}"
        if fix:
            message += f"\n    {fix}"
        super().__init__(message)
        self.host = host
        self.what = what
        self.fix = fix


class HostUnreachable(HostError):
    """No route, connection refused, timed out, or unknown host name."""

    exit_code = 21


class HostKeyUnknown(HostError):
    """known_hosts has no key for this host."""

    exit_code = 22


class HostKeyChanged(HostError):
    """known_hosts has another key for this host."""

    exit_code = 23


class LoginRefused(HostError):
    """The host was reached, but accepted no key."""

    exit_code = 24


class NodeFault(HostError):
    """The login worked, but the node could not do as asked."""

    exit_code = 25


class StreamFault(NodeFault):
    """The node answers, and says why it cannot send what a rank has written."""

    exit_code = 26


class Interrupted(UgroError):
    """Ctrl-C, or a job stopped on purpose."""

    exit_code = 130


class JobEnded(UgroError):
    """A job ended without success; the exit code is the one in its record."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        # A record may name a number that no process can end with.
        if 0 < exit_code < 256:
            self.exit_code = exit_code


class SeveralErrors(UgroError):
    """Several errors as one: their exit code if all have the same, else `otherwise`."""

    def __init__(
        self,
        errors: Iterable[UgroError],
        message: str,
        otherwise: int = UgroError.exit_code,
    ) -> None:
        super().__init__(message)
        codes = {error.exit_code for error in errors}
        self.exit_code = codes.pop() if len(codes) == 1 else otherwise
