"""The controller's end of the wire: whatever a node says, an answer or a HostError comes of it."""
# ruff: noqa: ARG002 (a stand-in has the whole seam, whether it needs it or not)

import contextlib
import itertools
import json
import os
import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.unit.factories import make_node
from ugro_tasks.errors import HostUnreachable, NodeFault, NodesBusy
from ugro_tasks.hosts.answers import StateAnswer, describe_holder, holder_of
from ugro_tasks.hosts.local import LocalHost
from ugro_tasks.hosts.operations import MakeFolder, Prepare, Probe, Request, State
from ugro_tasks.hosts.requests import PREFACE_LIMIT_BYTES, ask
from ugro_tasks.hosts.streams import Frame, follow
from ugro_tasks.node.main import MODULE_OF
from ugro_tasks.node.protocol import (
    CHUNK_BYTES,
    COMPRESSED,
    EXIT,
    FRAME,
    HEARTBEAT,
    LOG,
    MARK,
)

STATE = State(folder="/x", token="a:b:c")
PREPARE = Prepare(
    token="a:b:c",
    node="gpu0",
    folder="/x",
    argv=(),
    env={},
    node_bytes=0,
    controller="/a",
    hold_seconds=1.0,
)
PROBE = Probe(
    interpreter="python3",
    project="~/ugro",
    slot="node",
    wants_cuda=False,
    role="master",
    address="10.0.0.1",
    master="10.0.0.1",
    port=29500,
    port_seconds=0.0,
    nonce="x",
    environment={"manager": "existing"},
)


class Said:
    """A host that has said all that it will say."""

    round_trip_seconds = 0.0

    def __init__(self, *chunks: bytes) -> None:
        self.node = make_node()
        self.chunks = list(chunks)
        self.closed = False

    def run(
        self, argv: Sequence[str], stdin: bytes = b"", timeout_seconds: float = 30.0
    ) -> bytes:
        return b"".join(self.chunks)

    def stream(self, argv: Sequence[str], stdin: bytes | None = b"") -> "Said":
        return self

    def write(self, data: bytes) -> None:
        raise NotImplementedError

    def read(self, silence_seconds: float) -> bytes:
        return self.chunks.pop(0) if self.chunks else b""

    def close(self) -> None:
        self.closed = True

    def rsync_remote(self) -> tuple[list[str], str]:
        return [], ""


def frame(kind: int, offset: int, payload: bytes) -> bytes:
    return FRAME.pack(kind, offset, len(payload)) + payload


def frames_of(*chunks: bytes) -> list[Frame]:
    """What comes before the stream breaks off, as each of these streams does in the end."""
    came: list[Frame] = []
    host = Said(*chunks)
    with pytest.raises(NodeFault):
        came.extend(follow(host, 1.0))
    assert host.closed
    return came


# ---- answers ----


@pytest.mark.parametrize(
    "preface",
    [
        b"",
        b"Welcome!\n",
        b"\x1b[31mmotd\x1b[0m\r\n",
        b'{"error": "busy"}\n',
        MARK,
        b"\xff\0" * 1000,
    ],
)
def test_an_answer_is_found_behind_whatever_a_login_shell_prints(
    preface: bytes,
) -> None:
    said = (
        preface
        + MARK
        + b'{"known": true, "supervised": false, "started": true, "processes": []}\n'
    )
    answer = ask(Said(said), STATE)
    assert answer == StateAnswer(
        known=True, supervised=False, started=True, processes=[]
    )


def facts_of_a_fit_node() -> dict[str, Any]:
    recorded: dict[str, Any] = json.loads(
        (Path(__file__).parents[1] / "recordings" / "health.json").read_text()
    )
    facts: dict[str, Any] = recorded["fit"]
    return facts


def test_a_probe_tells_what_the_login_shell_printed() -> None:
    said = MARK + json.dumps(facts_of_a_fit_node()).encode()
    assert (
        ask(Said(b"Welcome to gpu0!\n\xff\n" + said), PROBE).preface
        == "Welcome to gpu0!\n\ufffd\n"
    )
    assert ask(Said(said), PROBE).preface == ""


class Antique(Said):
    """A host whose python3 is one of before 2019, with the words that it ends with."""

    def run(
        self, argv: Sequence[str], stdin: bytes = b"", timeout_seconds: float = 30.0
    ) -> bytes:
        raise NodeFault(self.node.name, "Python 3.6, and UGRO needs 3.8")


def test_a_python_that_is_too_old_comes_with_its_remedy() -> None:
    with pytest.raises(NodeFault) as fault:
        ask(Antique(), PROBE)
    assert (
        fault.value.what == "python3 is Python 3.6, and UGRO needs 3.8 or newer there"
    )
    assert fault.value.fix == "name a newer one as `python` of gpu0 in the cluster file"


GARBAGE = {
    "nothing": b"",
    "no mark": b'{"pid": 7}\n',
    "only the mark": MARK,
    "a word": MARK + b"hello\n",
    "a list": MARK + b"[1]\n",
    "a number": MARK + b"1" * 10_000,
    "cut short": MARK + b'{"pid": ',
    "two answers": MARK + b'{"pid": 7}\n{"pid": 8}\n',
    "not UTF-8": MARK + b'{"a": "\xff\xfe"}\n',
    "too deep": MARK + b'{"a": ' + b"[" * 200_000,
}


@pytest.mark.parametrize("said", GARBAGE.values(), ids=GARBAGE.keys())
def test_garbage_is_a_fault_of_the_node(said: bytes) -> None:
    with pytest.raises(NodeFault) as fault:
        ask(Said(said), STATE)
    assert fault.value.host == "gpu0"
    assert len(fault.value.text) < 1500


@given(
    st.binary()
    | st.binary().map(MARK.__add__)
    | st.text().map(lambda t: MARK + json.dumps(t).encode())
)
@example(MARK + b'{"error": "busy", "holder": 7}')
@example(MARK + b'{"error": null}')
def test_any_bytes_are_an_answer_or_a_fault(said: bytes) -> None:
    with contextlib.suppress(NodeFault, NodesBusy):
        assert isinstance(ask(Said(said), STATE), StateAnswer)


def test_garbage_is_shown_without_its_control_characters() -> None:
    with pytest.raises(NodeFault) as fault:
        ask(Said(b"\x1b[2J\x07boo"), STATE)
    assert "boo" in fault.value.text
    assert "\x1b" not in fault.value.text


def test_a_refusal_is_a_fault_in_the_nodes_own_words() -> None:
    said = (
        MARK
        + json.dumps(
            {"error": "unwritable", "message": "/x: Read-only file system"}
        ).encode()
    )
    with pytest.raises(NodeFault) as fault:
        ask(Said(said), PREPARE)
    assert fault.value.text == "gpu0: prepare: /x: Read-only file system"


@pytest.mark.parametrize(
    ("holder", "words"),
    [
        (
            {"job": "exp1", "controller": "/a", "pid": 7},
            "held by job exp1 of /a (pid 7 there)",
        ),
        ({"job": "exp1"}, "held by job exp1"),
        ({"pid": 7}, "held by another job (pid 7 there)"),
        (
            {"pid": 7, "user": "anna", "job": "exp1"},
            "held by job exp1 of the user anna (pid 7 there)",
        ),
        ({}, "held by another job"),
        (None, "held by another job"),
        ([1], "held by another job"),
        ("exp1", "held by another job"),
    ],
)
def test_the_holder_of_a_node_in_words(holder: Any, words: str) -> None:
    assert describe_holder(holder_of({"holder": holder})) == words


# ---- frames ----

FRAMES = [
    Frame(HEARTBEAT, 0, b""),
    Frame(LOG, 0, b"one\n"),
    Frame(LOG, 4, b"two\n"),
    Frame(EXIT, 0, b"{}"),
]
WIRE = MARK + b"".join(frame(*one) for one in FRAMES)


@given(st.lists(st.integers(1, len(WIRE) - 1), max_size=20))
def test_frames_are_the_same_however_the_network_cuts_them(cuts: list[int]) -> None:
    edges = sorted({0, len(WIRE), *cuts})
    chunks = [WIRE[begin:end] for begin, end in itertools.pairwise(edges)]
    assert frames_of(*chunks) == FRAMES


@pytest.mark.parametrize("length", range(len(WIRE)))
def test_a_stream_cut_short_gives_whole_frames_and_then_a_fault(length: int) -> None:
    came = frames_of(WIRE[:length])
    assert came == FRAMES[: len(came)]


@given(st.binary(max_size=300), st.binary(max_size=300))
def test_any_bytes_are_frames_or_a_fault(preface: bytes, rest: bytes) -> None:
    for came in frames_of(preface, MARK, rest):
        assert len(came.payload) <= 2 * CHUNK_BYTES


def test_a_stream_begins_behind_what_a_login_shell_prints() -> None:
    assert frames_of(b"Welcome!\n" + WIRE[:3], WIRE[3:]) == FRAMES


def test_a_shell_that_never_stops_talking_is_a_fault() -> None:
    talk = [b"x" * (1 << 14)] * 100
    host = Said(*talk)
    with pytest.raises(NodeFault, match="does not follow"):
        list(follow(host, 1.0))
    assert len(host.chunks) > len(talk) - 2 * PREFACE_LIMIT_BYTES // (1 << 14)


def test_a_compressed_frame_is_unpacked() -> None:
    bulk = b"0" * CHUNK_BYTES
    assert frames_of(MARK + frame(LOG | COMPRESSED, 5, zlib.compress(bulk))) == [
        Frame(LOG, 5, bulk)
    ]


HOSTILE = {
    "too long": FRAME.pack(LOG, 0, 2 * CHUNK_BYTES + 1),
    "as long as can be": FRAME.pack(LOG, 0, 2**32 - 1),
    "not packed": frame(LOG | COMPRESSED, 0, b"this is not zlib"),
    "packed, and cut short": frame(
        LOG | COMPRESSED, 0, zlib.compress(os.urandom(1000))[:500]
    ),
    "packed, and nothing": frame(LOG | COMPRESSED, 0, b""),
    "a bomb": frame(LOG | COMPRESSED, 0, zlib.compress(bytes(200 << 20), 9)),
}


@pytest.mark.parametrize("sent", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_frame_that_no_node_of_ours_sends_is_a_fault(sent: bytes) -> None:
    assert frames_of(MARK + sent) == []


@given(st.binary(max_size=200))
def test_what_is_said_to_be_packed_is_unpacked_or_a_fault(payload: bytes) -> None:
    for came in frames_of(MARK + frame(LOG | COMPRESSED, 0, payload)):
        assert zlib.decompress(payload) == came.payload


# ---- with a real process ----


@pytest.fixture
def python(tmp_path: Path) -> Path:
    """A stand-in for a node's python that does what the test writes into it."""
    program = tmp_path / "python"
    program.touch(0o755)
    return program


def local(python: Path) -> LocalHost:
    return LocalHost(
        make_node(transport="local", address="127.0.0.1", python=str(python))
    )


def test_a_node_that_says_nothing_is_out_of_reach(
    python: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ugro_tasks.hosts.pipes.WRITE_SECONDS", 0.5)
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    # The program is larger than a pipe, so a node that reads nothing is noticed when it is sent.
    with pytest.raises(HostUnreachable, match="it does not listen"):
        list(follow(local(python), 0.2))


def test_a_node_that_reads_and_says_nothing_is_out_of_reach(python: Path) -> None:
    python.write_text("#!/bin/sh\nexec 3<&0\ncat <&3 > /dev/null &\nexec sleep 60\n")
    with pytest.raises(HostUnreachable, match=r"no word for 0.2 s"):
        list(follow(local(python), 0.2))


def test_a_node_that_reads_nothing_and_leaves_is_a_fault(python: Path) -> None:
    python.write_text("#!/bin/sh\nexit 0\n")
    with pytest.raises(NodeFault):
        list(follow(local(python), 5.0))


def test_a_node_whose_python_fails_is_a_fault_with_its_last_words(python: Path) -> None:
    python.write_text("#!/bin/sh\ncat > /dev/null\necho 'no such thing' >&2\nexit 3\n")
    with pytest.raises(NodeFault) as fault:
        ask(local(python), STATE)
    assert fault.value.text == "gpu0: no such thing"


def test_a_python_in_the_nodes_home_is_found_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "a home; with $(oddities)"
    (home / "bin").mkdir(parents=True)
    (home / "bin" / "python").symlink_to(sys.executable)
    monkeypatch.setenv("HOME", str(home))
    host = LocalHost(
        make_node(transport="local", address="127.0.0.1", python="~/bin/python")
    )
    assert ask(host, MakeFolder(project="~/ugro")).project == f"{home}/ugro"


# ---- requests ----


@pytest.mark.parametrize(
    "kind", Request.__subclasses__(), ids=lambda kind: kind.__name__
)
def test_a_request_knows_the_class_of_its_answer_and_a_node_its_name(kind: Any) -> None:
    assert get_args(kind.__orig_bases__[0]) == (kind.answer,)
    assert kind.__struct_config__.tag in MODULE_OF


def test_every_operation_of_a_node_has_a_request() -> None:
    assert {kind.__struct_config__.tag for kind in Request.__subclasses__()} == set(
        MODULE_OF
    )


def test_a_request_is_a_line_of_json_and_then_its_bytes() -> None:
    heard: list[bytes] = []

    class Listening(Said):
        def run(
            self, argv: Sequence[str], stdin: bytes = b"", timeout_seconds: float = 30.0
        ) -> bytes:
            heard.append(stdin[int(argv[-1]) :])
            return MARK + b"{}\n"

    ask(Listening(), PREPARE, blob=b"zip")
    line, _, blob = heard[0].partition(b"\n")
    told = json.loads(line)
    assert (told["op"], told["blob_bytes"], told["folder"], told["argv"]) == (
        "prepare",
        3,
        "/x",
        [],
    )
    assert blob == b"zip"


def test_another_jobs_name_is_an_answer_only_where_a_job_may_be_in_the_way() -> None:
    said = (
        MARK
        + b'{"error": "busy", "message": "held", "holder": {"job": "exp1", "pid": 7}}\n'
    )
    with pytest.raises(NodesBusy, match=r"gpu0: held by job exp1 \(pid 7 there\)"):
        ask(Said(said), PREPARE)
    with pytest.raises(NodeFault, match="state: held"):
        ask(Said(said), STATE)
