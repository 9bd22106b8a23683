"""File transfer over an existing connection, without rsync; `node/copy.py` is the host's side."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import HostError, HostUnreachable, NodeFault
from ..files import leave_room
from ..node import protocol
from ..node.copy import Storing, batches, sign_of_life
from ..node.protocol import FRAME, HEARTBEAT
from ..node.receiver import Receiver, Want
from ..node.source import Source
from ..node.tree import Unfit
from ..text import first_of
from .answers import shortened
from .host import ARRIVED_STAYS, Host
from .received import remove_strays
from .streams import Frame, open_frames

# Without a byte from the other side: a disk under full load stalls for long.
SILENCE_SECONDS = 120.0
# Of what is said of one file.
ERROR_CHARACTERS = 500
# For a node's error message to arrive after it has stopped listening.
LAST_WORDS_SECONDS = 10.0
# A file received damaged is requested once more.
ROUNDS_MOST = 2
# The exceptions of reading a malformed frame.
MALFORMED = (ValueError, RecursionError, TypeError, KeyError, AttributeError)


class NotCome(NamedTuple):
    """What has not come of a rank's outputs: each path with the reason."""

    faults: list[str]
    links: list[str]
    """What a link leads to comes only under conditions, see `node/outputs.py`."""


class Copy:
    """Transfer between this machine and a host, compared, resumed and verified as rsync would.

    It has the methods of `Rsync`, and names folders in the same way.
    """

    def __init__(self, host: Host) -> None:
        self.host = host

    def push(
        self,
        source: str,
        target: str,
        *,
        exclude: Sequence[str] = (),
        delete: bool = False,
        files: Sequence[str] | None = None,
        link_from: Sequence[str] = (),
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Make the folder `target` on the host like `source` here; see `Rsync.push`.

        Raises HostError.
        """
        ours = Source(source, files=_listed(files), exclude=exclude, links="all")
        request = {
            "folder": _without_slash(target),
            "link_from": list(link_from),
            "delete": delete,
            "exclude": list(exclude),
            "links": "all",
        }
        with _Exchange(self.host, "receive_files", request) as exchange:
            _Push(exchange, ours, _percentages(progress)).run()

    def pull(
        self,
        source: str,
        target: str,
        *,
        exclude: Sequence[str] = (),
        never_links: Sequence[str] = (),
        only: Sequence[str] = (),
        files: Sequence[str] | None = None,
        follow_links: bool = False,
        gently: bool = False,
        verify: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Make the folder `target` here like `source` on the host; see `Rsync.pull`.

        Raises HostError, and OSError if the disk here is full. Files received so far are kept.
        """
        links = "followed" if follow_links else "inside"
        asked = _pull_request(
            source, exclude, only, files, never_links, links=links, gently=gently
        )
        receiver = self._receive(
            asked,
            target,
            progress,
            only=asked["only"],
            files=asked["files"],
            exclude=exclude,
            never_links=never_links,
            verify=verify,
            links=links,
        )
        if receiver.errors:
            raise _incomplete(self.host, _summary(receiver.errors))

    def _receive(
        self,
        asked: dict[str, Any],
        target: str,
        progress: Callable[[int], None] | None,
        heard: Callable[[Receiver], None] = lambda _: None,
        **choice: Any,
    ) -> Receiver:
        """Fetch what is missing here of what the node lists; `heard` is called in between.

        `choice` is for `Receiver`, which has the errors of single files. Raises HostError, and
        OSError if the disk here is full.
        """
        with _Exchange(self.host, "send_files", asked) as exchange:
            receiver = Receiver(
                target,
                vanished=True,
                room=lambda: leave_room(Path(target)),
                alive=sign_of_life(exchange.put),
                **choice,
            )
            try:
                exchange.read_listing(receiver)
                heard(receiver)
                _store(exchange, receiver, _percentages(progress))
            finally:
                receiver.close()
                remove_strays(target)
        return receiver

    def bytes_to_come(
        self, source: str, target: str, *, exclude: Sequence[str] = ()
    ) -> int:
        """Return the bytes a pull would transfer. Raises HostError."""
        asked = _pull_request(source, exclude)
        with _Exchange(self.host, "send_files", asked) as exchange:
            alive = sign_of_life(exchange.put)
            receiver = Receiver(target, exclude=exclude, alive=alive)
            exchange.read_listing(receiver)
            # The receiver counts the bytes of each want.
            for _ in receiver.wants(look_only=True):
                pass
            return receiver.bytes_to_come

    def complete(
        self,
        source: str,
        target: str,
        *,
        exclude: Sequence[str] = (),
        never_links: Sequence[str] = (),
        only_new: bool = False,
        verify: bool = False,
        leave_links: bool = False,
        announce: Callable[[str, str, int], None] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> NotCome:
        """Fetch the outputs of a rank that are missing here; return what has not come.

        A link may come as what it leads to, see `node/outputs.py`; `announce` is told of it before:
        (link, what it leads to, bytes). Raises HostError, and OSError if the disk here is full.
        """

        def tell_links(receiver: Receiver) -> None:
            for link, leads_to, size in receiver.followed:
                if announce:
                    announce(shortened(link, 200), shortened(leads_to, 200), size)

        receiver = self._receive(
            _outputs_request(source, exclude, never_links, leave_links),
            target,
            progress,
            tell_links,
            exclude=exclude,
            never_links=never_links,
            only_new=only_new,
            verify=verify,
        )
        return NotCome(
            faults=_shortened(receiver.errors), links=_shortened(receiver.left_out)
        )

    def missing(
        self,
        source: str,
        target: str,
        *,
        exclude: Sequence[str] = (),
        never_links: Sequence[str] = (),
        only_new: bool = False,
        leave_links: bool = False,
    ) -> list[str]:
        """Name what `complete` would fetch, and what it would leave out unasked; raises HostError.

        Nothing is written here.
        """
        asked = _outputs_request(source, exclude, never_links, leave_links)
        with _Exchange(self.host, "send_files", asked) as exchange:
            receiver = Receiver(
                target,
                exclude=exclude,
                never_links=never_links,
                only_new=only_new,
                alive=sign_of_life(exchange.put),
            )
            exchange.read_listing(receiver)
            found = [want[0] for want in receiver.wants(look_only=True)]
        found += receiver.errors
        if not leave_links:
            found += receiver.left_out
        return [shortened(words, 200) for words in found]


def _store(
    exchange: _Exchange, receiver: Receiver, tell: Callable[[int, int], None]
) -> None:
    """Fetch what is missing of the files in the listing."""
    storing = Storing(receiver, exchange.put)
    storing.ask()
    came = 0
    tell(came, receiver.bytes_to_come)
    for frame in exchange.frames():
        with exchange.readable():
            done = storing.take(frame.kind, frame.offset, frame.payload)
        if done:
            receiver.finish()
            return tell(receiver.bytes_to_come, receiver.bytes_to_come)
        if frame.kind == protocol.CONTENT:
            came += len(frame.payload)
            tell(came, receiver.bytes_to_come)
    raise exchange.broken_off()


class _Push:
    """The source's side of a push: it lists the files here and sends the wanted ones."""

    def __init__(
        self, exchange: _Exchange, ours: Source, tell: Callable[[int, int], None]
    ) -> None:
        self.exchange = exchange
        self.ours = ours
        self.tell = tell
        self._sizes: dict[str, int] = {}
        self._wants: list[Want] = []
        self._rounds = 0
        self._sent_bytes = 0
        self._total_bytes = 0

    def run(self) -> None:
        """Send the list, then the wanted files until all are stored; raises HostError."""
        self._send_list()
        for frame in self.exchange.frames():
            if frame.kind == protocol.WANTED:
                self._note_wants(frame)
            elif frame.kind == protocol.ENOUGH:
                self._send_wanted()
            elif frame.kind == protocol.STORED:
                self._check_result(frame)
                return
        raise self.exchange.broken_off()

    def _send_list(self) -> None:
        alive = sign_of_life(self.exchange.put)
        for batch in batches(self._noting_sizes(self.ours.entries(alive))):
            self.exchange.put(protocol.ENTRIES, 0, batch)
        self.exchange.put(protocol.LISTED, 0, b"")

    def _noting_sizes(self, entries: Iterable[Any]) -> Iterator[Any]:
        for entry in entries:
            if entry[0] == "f":
                self._sizes[entry[1]] = entry[4]
            yield entry

    def _note_wants(self, frame: Frame) -> None:
        with self.exchange.readable():
            for want in json.loads(frame.payload):
                self._wants.append(_checked_want(want, self._sizes))
            if len(self._wants) > len(self._sizes):
                raise Unfit("it wants files without end")

    def _send_wanted(self) -> None:
        self._rounds += 1
        with self.exchange.readable():
            if self._rounds > ROUNDS_MOST:
                raise Unfit("it asks for the same files again and again")
        self._total_bytes = self._sent_bytes
        for path, offset, _, _ in self._wants:
            self._total_bytes += max(0, self._sizes[path] - offset)
        for want in self._wants:
            self.ours.send(want, self._put, sign_of_life(self.exchange.put))
        self._wants = []
        self.exchange.put(protocol.ENOUGH, 0, b"")

    def _put(self, kind: int, offset: int, payload: bytes) -> None:
        """Send a frame and report the progress."""
        self.exchange.put(kind, offset, payload)
        if kind == protocol.CONTENT:
            self._sent_bytes += len(payload)
            self.tell(self._sent_bytes, self._total_bytes)

    def _check_result(self, frame: Frame) -> None:
        with self.exchange.readable():
            result = json.loads(frame.payload)
            errors = [str(error) for error in result["errors"]]
        if errors:
            raise _incomplete(self.exchange.host, _summary(errors))
        self.tell(self._sent_bytes, self._sent_bytes)


def _checked_want(want: object, sizes: dict[str, int]) -> Want:
    """Validate a node's request for a file, [path, offset, SHA-256, may follow].

    Raises Unfit if it is malformed, or if the file was not offered.
    """
    if not isinstance(want, list) or len(want) != 4:
        raise Unfit(f"no want: {want!r:.200}")
    path, offset, known, may_follow = want
    is_offered = isinstance(path, str) and path in sizes
    is_offset = isinstance(offset, int) and offset >= 0
    if not is_offered or not is_offset:
        raise Unfit(f"no want: {want!r:.200}")
    # An offset beyond the end makes the source start the file anew.
    offset = min(offset, sizes[path] + 1)
    return [path, offset, known, bool(may_follow)]


class _Exchange:
    """The exchange of frames of one transfer."""

    def __init__(self, host: Host, operation: str, request: dict[str, Any]) -> None:
        self.host = host
        self.operation = operation
        self.stream, self._frames = open_frames(
            host, operation, SILENCE_SECONDS, **request
        )

    def __enter__(self) -> _Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        self._frames.close()
        self.stream.close()

    def put(self, kind: int, offset: int, payload: bytes) -> None:
        """Send a frame. Raises HostError, if possible with the node's own error message."""
        head = FRAME.pack(kind, offset, len(payload))
        try:
            self.stream.write(head + payload)
        except HostUnreachable as error:
            if not isinstance(error.__cause__, TimeoutError):
                self._raise_failure()
            raise

    def _raise_failure(self) -> None:
        """Raise the failure reported by the node before it stopped listening, if any."""
        failure: NodeFault | None = None
        deadline = time.monotonic() + LAST_WORDS_SECONDS
        # A HostError is the end of the stream.
        with contextlib.suppress(HostError):
            for frame in self._frames:
                if frame.kind == protocol.FAILED:
                    failure = self._failure(frame)
                if failure or time.monotonic() > deadline:
                    break
        if failure:
            raise failure

    def _failure(self, frame: Frame) -> NodeFault:
        with self.readable():
            message = shortened(json.loads(frame.payload)["message"])
        return _incomplete(self.host, message)

    def frames(self) -> Iterator[Frame]:
        """Yield the node's frames; raises NodeFault if it reports a failure."""
        for frame in self._frames:
            if frame.kind == protocol.FAILED:
                raise self._failure(frame)
            if frame.kind != HEARTBEAT:
                yield frame

    def read_listing(self, receiver: Receiver) -> None:
        """Read the node's list of files into the receiver."""
        for frame in self.frames():
            if frame.kind == protocol.LISTED:
                return
            with self.readable():
                receiver.expect(json.loads(frame.payload))
        raise self.broken_off()

    def readable(self) -> _Readable:
        """Make a context in which malformed data of the node raises NodeFault."""
        return _Readable(self.host)

    def broken_off(self) -> NodeFault:
        """Make the error for a connection closed in the middle."""
        return _incomplete(self.host, f"{self.operation}: it broke off")


class _Readable:
    def __init__(self, host: Host) -> None:
        self.host = host

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, _kind: object, error: BaseException | None, _trace: object
    ) -> None:
        if isinstance(error, MALFORMED):
            words = f"its files cannot be taken: {shortened(error)}"
            raise NodeFault(self.host.node.name, words) from error


def _pull_request(
    source: str,
    exclude: Sequence[str],
    only: Sequence[str] = (),
    files: Sequence[str] | None = None,
    never_links: Sequence[str] = (),
    *,
    links: str = "inside",
    gently: bool = False,
) -> dict[str, Any]:
    return {
        "folder": _without_slash(source),
        "exclude": list(exclude),
        "only": [name.removeprefix("/") for name in only] or None,
        "files": _listed(files),
        "never_links": list(never_links),
        "links": links,
        "gently": gently,
    }


def _outputs_request(
    source: str, exclude: Sequence[str], never_links: Sequence[str], leave_links: bool
) -> dict[str, Any]:
    links = "left" if leave_links else "owned"
    return _pull_request(source, exclude, never_links=never_links, links=links)


def _listed(files: Sequence[str] | None) -> list[str] | None:
    return None if files is None else list(files)


def _without_slash(folder: str) -> str:
    return folder.rstrip("/") or "/"


def _percentages(progress: Callable[[int], None] | None) -> Callable[[int, int], None]:
    """Make a function of (bytes transferred, total bytes) reporting each new percentage once."""
    told = -1

    def tell(came: int, total: int) -> None:
        nonlocal told
        percent = 100
        if total:
            percent = min(100, 100 * came // total)
        if progress and percent > told:
            told = percent
            progress(percent)

    return tell


def _incomplete(host: Host, what: str) -> NodeFault:
    """Make the error for an incomplete transfer."""
    return NodeFault(host.node.name, what, ARRIVED_STAYS)


def _summary(errors: Sequence[str]) -> str:
    """Name the errors of a transfer in one line."""
    return first_of(_shortened(errors))


def _shortened(errors: Sequence[str]) -> list[str]:
    """Return the errors of single files, each printable and at most ERROR_CHARACTERS long."""
    return [shortened(error, ERROR_CHARACTERS) for error in errors]
