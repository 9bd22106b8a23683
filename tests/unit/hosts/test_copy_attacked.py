"""Files over a host's own connection, from a node that lies, over a link that breaks, between odd disks."""

from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.unit.factories import file_told, make_node
from ugro_tasks.errors import HostError, HostUnreachable, NodeFault
from ugro_tasks.hosts import copy
from ugro_tasks.hosts.copy import Copy
from ugro_tasks.hosts.host import Stream
from ugro_tasks.hosts.local import LocalHost
from ugro_tasks.node import listing, protocol, receiver
from ugro_tasks.node.protocol import FRAME, MARK
from ugro_tasks.node.receiver import Receiver, do_nothing
from ugro_tasks.node.source import Source
from ugro_tasks.node.tree import PARTIAL_FOLDER, partial_of

NODE = make_node(transport="local", address="127.0.0.1")
HERE = LocalHost(NODE)
DEEP = 300  # levels
CALLS = 150  # within calls


@pytest.fixture
def there(tmp_path: Path) -> Path:
    folder = tmp_path / "there"
    folder.mkdir()
    return folder


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    return folder


def frame(kind: int, value: object = None, offset: int = 0) -> bytes:
    payload = value if isinstance(value, bytes) else json.dumps(value).encode()
    return FRAME.pack(kind, offset, len(payload)) + payload


class Said:
    """The stream of a node that says the same whatever it is given; with `endless`, the last frame for ever."""

    def __init__(self, frames: Sequence[bytes], *, endless: bool) -> None:
        self.frames = [MARK, *frames]
        self.endless = endless

    def read(self, _silence_seconds: float) -> bytes:
        if self.endless and len(self.frames) == 1:
            return self.frames[0]
        return self.frames.pop(0) if self.frames else b""

    def write(self, data: bytes) -> None: ...

    def close(self) -> None: ...


class Deaf(Said):
    """One that takes the request, and no more."""

    written = 0

    def write(self, _data: bytes) -> None:
        self.written += 1
        if self.written > 1:
            raise HostUnreachable(NODE.name, "it has stopped listening") from OSError()


class Liar(LocalHost):
    """A node with another program in the place of ours."""

    def __init__(
        self, *frames: bytes, endless: bool = False, kind: type[Said] = Said
    ) -> None:
        super().__init__(NODE)
        self.kind = kind
        self.frames = frames
        self.endless = endless

    def stream(self, _argv: Sequence[str], _stdin: bytes | None = b"") -> Stream:
        return self.kind(self.frames, endless=self.endless)


def sent(path: str, content: bytes) -> list[bytes]:
    """The frames of a node that has one file."""
    return [
        frame(protocol.ENTRIES, [["f", path, 5, 0o644, len(content)]]),
        frame(protocol.LISTED, b""),
        frame(protocol.NEXT, path),
        frame(protocol.CONTENT, content),
        frame(protocol.FILE, file_told(path, content)),
        frame(protocol.ENOUGH, b""),
    ]


# ---- a node that lies ----


def test_a_node_that_says_what_it_should_is_believed(here: Path) -> None:
    Copy(Liar(*sent("file", b"content"))).pull(
        "/x/", f"{here}/", exclude=["/state.json"]
    )
    assert (here / "file").read_bytes() == b"content"


@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("state.json", {"exclude": ["/config.json", "/state.json"]}),
        ("state.json/x", {"exclude": ["/state.json"]}),
        ("checkpoints/a.manifest.json", {"exclude": ["/checkpoints/*.manifest.json"]}),
        ("state.json", {"only": ["/tensorboard"]}),
        ("state.json", {"files": ["checkpoint-2/a"]}),
        ("checkpoint-2/a.manifest.json", {"files": ["checkpoint-2/a"]}),
    ],
)
def test_what_was_not_asked_for_is_not_taken(
    here: Path, path: str, options: dict[str, Any]
) -> None:
    """Beside a rank's outputs lie UGRO's own records, which no node may write."""
    (here / "state.json").write_text("ours")
    with pytest.raises(NodeFault, match="not asked for"):
        Copy(Liar(*sent(path, b"theirs"))).pull("/x/", f"{here}/", **options)
    assert {name.name for name in here.iterdir()} == {"state.json"}
    assert (here / "state.json").read_text() == "ours"


@pytest.mark.parametrize(
    "entry",
    [
        ["f", "\ud800", 5, 0o644, 1],
        ["d", "a/\udfff", 5, 0o755],
        ["l", "a", "\ud800"],
        ["l", "\ud800", "a"],
    ],
    ids=ascii,
)
def test_a_name_that_no_file_system_has_is_the_nodes_fault(
    here: Path, entry: list[object]
) -> None:
    frames = [
        frame(protocol.ENTRIES, [entry]),
        frame(protocol.LISTED, b""),
        frame(protocol.ENOUGH, b""),
    ]
    with pytest.raises(NodeFault):
        Copy(Liar(*frames)).pull("/x/", f"{here}/")


@pytest.mark.parametrize(
    "entry",
    [
        ["f", "same", 5, 0o644, 1],
        ["e", "x", "no"],
        ["e", "", "no"],
        ["d", "x" * 3000, 5, 0o755],
    ],
    ids=["one file", "what cannot be read", "the folder", "a long name"],
)
def test_a_list_without_end_is_given_up(
    here: Path, entry: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "ENTRIES_MOST", 5000)
    monkeypatch.setattr(listing, "CHARACTERS_MOST", 100_000)
    with pytest.raises(NodeFault, match="without end"):
        Copy(Liar(frame(protocol.ENTRIES, [entry] * 10), endless=True)).pull(
            "/x/", f"{here}/"
        )


def test_of_endless_complaints_the_first_are_kept(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receiver, "ERRORS_KEPT", 10)
    made = Receiver(str(here))
    made.expect([["e", f"file{number}", "no"] for number in range(100)])
    assert made.errors == [f"file{number}: no" for number in range(10)]


def test_links_that_lead_out_by_way_of_others_do_not_stay(here: Path) -> None:
    """By its words `out` stays inside: two folders down, one up."""
    links = [
        ["d", "deep", 5, 0o755],
        ["l", "deep/up", ".."],
        ["l", "out", "deep/up/.."],
    ]
    frames = [
        frame(protocol.ENTRIES, links),
        frame(protocol.LISTED, b""),
        frame(protocol.ENOUGH, b""),
    ]
    Copy(Liar(*frames)).pull("/x/", f"{here}/")
    assert (here / "deep" / "up").is_symlink()
    assert not (here / "out").is_symlink()


@pytest.mark.parametrize(
    "frames",
    [
        [frame(protocol.WANTED, [["file", 0, None, True]] * 10)],
        [
            frame(protocol.WANTED, [["file", 0, None, True]])
            + frame(protocol.ENOUGH, b"")
        ],
    ],
    ids=["in one list", "again and again"],
)
def test_a_node_that_wants_files_without_end_is_given_up(
    there: Path, frames: list[bytes]
) -> None:
    (there / "file").write_bytes(b"content")
    with pytest.raises(NodeFault, match=r"without end|again and again"):
        Copy(Liar(*frames, endless=True)).push(f"{there}/", "/x/")


def test_a_file_that_comes_damaged_twice_is_told_once(here: Path) -> None:
    wrong = [
        frame(protocol.NEXT, "file"),
        frame(protocol.CONTENT, b"wrong"),
        frame(protocol.FILE, file_told("file", b"right")),
        frame(protocol.ENOUGH, b""),
    ]
    frames = [*sent("file", b"right")[:2], *wrong, *wrong]
    with pytest.raises(
        NodeFault, match="file: what came of it is not what was sent, twice"
    ):
        Copy(Liar(*frames)).pull("/x/", f"{here}/")
    assert not (here / "file").exists()


# ---- odd trees and disks ----


def make_deep(folder: Path, levels: int, name: str = "d") -> str:
    """Make folders in folders, and a file in the last one, however long its path; gives the path in the folder."""
    at = os.open(folder, os.O_RDONLY)
    for _ in range(levels):
        os.mkdir(name, dir_fd=at)
        below = os.open(name, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = below
    os.close(os.open("file", os.O_WRONLY | os.O_CREAT, dir_fd=at))
    os.close(at)
    return f"{name}/" * levels + "file"


@pytest.fixture
def few_calls() -> Iterator[None]:
    """Calls within calls are fewer than the levels of a deep tree, as they are in one of a thousand levels."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack()) + CALLS)
    yield
    sys.setrecursionlimit(limit)


@pytest.mark.usefixtures("few_calls")
def test_a_deep_tree_comes_with_its_links(there: Path, here: Path) -> None:
    file = make_deep(there, DEEP)
    (there / file).with_name("out").symlink_to("d/..")
    (here / "out").symlink_to("/etc")
    Copy(HERE).pull(f"{there}/", f"{here}/")
    assert (here / file).is_file()
    assert (here / file).with_name("out").is_symlink()
    assert not (here / "out").is_symlink()


@pytest.mark.usefixtures("few_calls")
def test_what_the_source_has_not_is_removed_however_deep_it_lies(
    there: Path, here: Path
) -> None:
    kept = make_deep(here, DEEP)
    (here / kept).with_name("other").touch()
    (here / "old").mkdir()
    make_deep(here / "old", DEEP)
    make_deep(there, DEEP)
    made = Receiver(str(here), delete=True)
    made.expect(list(Source(str(there)).entries(do_nothing)))
    list(made.wants())
    made.finish()
    assert made.errors == []
    assert [path.name for path in here.iterdir()] == ["d"]
    assert [path.name for path in (here / kept).parent.iterdir()] == ["file"]


def test_a_path_longer_than_a_system_takes_is_told_and_the_rest_comes(
    there: Path, here: Path
) -> None:
    make_deep(there, 20, "d" * 250)
    (there / "one").write_text("one")
    with pytest.raises(NodeFault, match="File name too long"):
        Copy(HERE).pull(f"{there}/", f"{here}/")
    assert (here / "one").read_text() == "one"
    for folder in (there, here):
        subprocess.run(["rm", "-rf", "--", folder], check=True)


def test_names_with_newlines_escapes_and_no_text_come_and_are_told_plainly(
    there: Path, here: Path
) -> None:
    names = [
        "two\nlines",
        "\x1b[31mred",
        os.fsdecode(b"\xff\xfe"),
        "-n",
        "a\\b",
        "*",
        "\u202egnp",
    ]
    for name in names:
        (there / name).write_text(name, errors="surrogateescape")
    bad = os.fsdecode(b"\x1b]0;owned\x07\xff")
    (there / bad).touch()
    (here / bad / "mine").mkdir(parents=True)
    with pytest.raises(NodeFault) as fault:
        Copy(HERE).pull(f"{there}/", f"{here}/")
    assert all(line.isprintable() for line in fault.value.text.splitlines())
    assert sorted(path.name for path in here.iterdir()) == sorted(
        [*names, bad, PARTIAL_FOLDER]
    )


def test_where_a_part_cannot_lie_the_other_files_come(there: Path, here: Path) -> None:
    for name in ("one", "two"):
        (there / name).write_text(name)
    for name in ("empty", "empty too"):
        (there / name).touch()
    (here / partial_of("two")).mkdir(parents=True)
    (here / partial_of("empty")).mkdir(parents=True)
    with pytest.raises(
        NodeFault, match=r"empty.*Is a directory; .*two.*Is a directory"
    ):
        Copy(HERE).pull(f"{there}/", f"{here}/")
    assert (here / "one").read_text() == "one"
    assert (here / "empty too").read_text() == ""
    assert not (here / "two").exists()


class Failing:
    """A file on a disk that fails after some bytes."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = list(pieces)

    def __enter__(self) -> Failing:
        return self

    def __exit__(self, *_: object) -> None: ...

    def read(self, _size: int) -> bytes:
        if self.pieces:
            return self.pieces.pop(0)
        raise OSError(5, "Input/output error")


def test_a_disk_that_fails_is_told_of_its_file(
    there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (there / "file").write_bytes(b"content")
    put: list[tuple[int, bytes]] = []

    def opened(descriptor: int, *_: object, **__: object) -> Failing:
        os.close(descriptor)
        return Failing([b"con"])

    monkeypatch.setattr(
        "ugro_tasks.node.source.os.fstat", lambda _: (there / "file").stat()
    )
    monkeypatch.setattr("ugro_tasks.node.source.open", opened, raising=False)
    Source(str(there)).send(
        ["file", 0, None, True],
        lambda kind, _, payload: put.append((kind, payload)),
        do_nothing,
    )
    assert put[1] == (protocol.CONTENT, b"con")
    assert json.loads(put[-1][1]) == {"path": "file", "error": "Input/output error"}


# ---- links that break ----


class Breakable(LocalHost):
    """This machine, whose program of a transfer can be killed."""

    last: Any = None

    def stream(self, argv: Sequence[str], stdin: bytes | None = b"") -> Stream:
        self.last = super().stream(argv, stdin)
        return self.last  # type: ignore[no-any-return]

    def kill(self, percent: int) -> None:
        if percent > 20:
            self.last.pipes.process.kill()

    def interrupt(self, percent: int) -> None:
        if percent > 20:
            raise KeyboardInterrupt


def transfer(
    host: LocalHost, way: str, there: Path, here: Path, **options: Any
) -> None:
    if way == "pull":
        Copy(host).pull(f"{there}/", f"{here}/", **options)
    else:
        Copy(host).push(f"{there}/", f"{here}/", **options)


@pytest.mark.parametrize("way", ["pull", "push"])
@pytest.mark.parametrize("end", ["killed", "Ctrl-C"])
def test_a_transfer_that_ends_half_way_goes_on_from_there(
    there: Path, here: Path, way: str, end: str
) -> None:
    content = os.urandom(16 << 20)
    (there / "file").write_bytes(content)
    host = Breakable(NODE)
    stop: Callable[[int], None] = host.kill if end == "killed" else host.interrupt
    with pytest.raises(HostError if end == "killed" else KeyboardInterrupt):
        transfer(host, way, there, here, progress=stop)
    came = (here / PARTIAL_FOLDER / "file").stat().st_size
    assert 0 < came < len(content)
    assert not (here / "file").exists()
    told: list[int] = []
    transfer(host, way, there, here, progress=told.append)
    assert (here / "file").read_bytes() == content
    assert not (here / PARTIAL_FOLDER).exists()


def test_a_node_that_closes_its_ears_and_talks_on_is_given_up(
    there: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copy, "LAST_WORDS_SECONDS", 0.1)
    (there / "file").write_bytes(b"content")

    with pytest.raises(HostError):
        Copy(Liar(frame(protocol.HEARTBEAT, b""), endless=True, kind=Deaf)).push(
            f"{there}/", "/x/"
        )
