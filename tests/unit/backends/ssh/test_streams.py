"""A rank's streams in the experiment folder, byte for byte."""
# ruff: noqa: ARG002 (a stand-in has the whole seam, whether it needs it or not)

import json
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.factories import disk_full_beyond, make_node, make_node_plan
from ugro_tasks.backends.ssh.disk_thread import DiskThread
from ugro_tasks.backends.ssh.streams import follow_rank
from ugro_tasks.errors import NodeFault
from ugro_tasks.hosts.requests import node_zip
from ugro_tasks.hosts.streams import Frame
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.outcome import RankExit
from ugro_tasks.jobs.streams import stream_sizes
from ugro_tasks.node.protocol import (
    EXIT,
    FRAME,
    GPU,
    HEARTBEAT,
    LOG,
    LOST,
    MARK,
    METRICS,
)
from ugro_tasks.outputs.streams import RankFiles


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    (tmp_path / "exp1_20260120_120000" / "logs").mkdir(parents=True)
    return Experiment(tmp_path / "exp1_20260120_120000")


def sample(node: str, number: int) -> bytes:
    """A line as a node's supervisor writes it."""
    return (
        json.dumps({"index": "0", "power.draw": str(number), "node": node, "time": 1.5})
        + "\n"
    ).encode()


def test_a_log_is_stored_byte_for_byte(experiment: Experiment) -> None:
    files = RankFiles(experiment, make_node_plan(1))
    files.store("gpu1", Frame(LOG, 0, b"a\r\n\0\xff"))
    files.store("gpu1", Frame(LOG, 5, b"no newline"))
    assert experiment.log(1).path.read_bytes() == b"a\r\n\0\xffno newline"


def test_a_log_is_readable_by_its_owner_only(experiment: Experiment) -> None:
    RankFiles(experiment, make_node_plan()).store("gpu0", Frame(LOG, 0, b"secret"))
    assert stat.S_IMODE(experiment.log(0).path.stat().st_mode) == 0o600


def test_streams_go_on_where_their_files_end(experiment: Experiment) -> None:
    plan = make_node_plan()
    files = RankFiles(experiment, plan)
    for one in (
        Frame(LOG, 0, b"12345"),
        Frame(METRICS, 0, b"{}\n"),
        Frame(GPU, 0, sample("gpu0", 1)),
    ):
        files.store("gpu0", one)
    assert files.offsets == {LOG: 5, METRICS: 3, GPU: len(sample("gpu0", 1))}
    assert RankFiles(experiment, plan).offsets == files.offsets


def test_a_rank_that_was_never_heard_of_begins_at_the_beginning(
    experiment: Experiment,
) -> None:
    assert RankFiles(experiment, make_node_plan()).offsets == {
        LOG: 0,
        METRICS: 0,
        GPU: 0,
    }


def test_a_later_attempt_appends_to_the_files_of_the_earlier(
    experiment: Experiment,
) -> None:
    plan = make_node_plan()
    first = RankFiles(experiment, plan)
    for one in (
        Frame(LOG, 0, b"12345"),
        Frame(METRICS, 0, b"{}\n"),
        Frame(GPU, 0, sample("gpu0", 1)),
    ):
        first.store("gpu0", one)
    bases = stream_sizes(experiment, [plan])
    second = RankFiles(experiment, plan, bases)
    assert second.offsets == {LOG: 0, METRICS: 0, GPU: 0}
    second.store("gpu0", Frame(LOG, 0, b"678"))
    assert experiment.log(0).path.read_bytes() == b"12345678"
    assert RankFiles(experiment, plan, bases).offsets[LOG] == 3


@pytest.mark.parametrize("offset", [0, 4, 6, 2**63])
def test_a_piece_that_is_not_the_next_is_refused_and_not_stored(
    experiment: Experiment, offset: int
) -> None:
    files = RankFiles(experiment, make_node_plan())
    files.store("gpu0", Frame(LOG, 0, b"12345"))
    with pytest.raises(NodeFault, match="goes on at byte"):
        files.store("gpu0", Frame(LOG, offset, b"x"))
    assert experiment.log(0).path.read_bytes() == b"12345"


@pytest.mark.parametrize("kind", [HEARTBEAT, EXIT, LOST, 77])
def test_a_stream_that_does_not_exist_is_refused(
    experiment: Experiment, kind: int
) -> None:
    with pytest.raises(NodeFault):
        RankFiles(experiment, make_node_plan()).store("gpu0", Frame(kind, 0, b"x"))


def test_metrics_are_taken_from_rank_0_only(experiment: Experiment) -> None:
    with pytest.raises(NodeFault):
        RankFiles(experiment, make_node_plan(1)).store(
            "gpu1", Frame(METRICS, 0, b"{}\n")
        )
    assert not experiment.metrics.exists()


def test_samples_of_several_nodes_share_a_file_in_whole_lines(
    experiment: Experiment,
) -> None:
    wanted = {
        f"gpu{rank}": sample(f"gpu{rank}", 1) + sample(f"gpu{rank}", 2)
        for rank in (1, 10)
    }
    files = {
        node: RankFiles(experiment, make_node_plan(int(node[3:]))) for node in wanted
    }
    for offset in range(0, 400, 7):
        for node, stream in wanted.items():
            if piece := stream[offset : offset + 7]:
                files[node].store(node, Frame(GPU, offset, piece))
    lines = experiment.gpu.path.read_bytes().splitlines(keepends=True)
    for node, stream in wanted.items():
        assert (
            b"".join(line for line in lines if json.loads(line)["node"] == node)
            == stream
        )


def test_samples_go_on_behind_the_last_whole_line_of_their_own_node(
    experiment: Experiment,
) -> None:
    one, ten = (RankFiles(experiment, make_node_plan(rank)) for rank in (1, 10))
    one.store("gpu1", Frame(GPU, 0, sample("gpu1", 1) + sample("gpu1", 2)[:9]))
    ten.store("gpu10", Frame(GPU, 0, sample("gpu10", 1)))
    assert RankFiles(experiment, make_node_plan(1)).offsets[GPU] == len(
        sample("gpu1", 1)
    )
    assert RankFiles(experiment, make_node_plan(10)).offsets[GPU] == len(
        sample("gpu10", 1)
    )


def test_a_log_goes_on_behind_what_a_full_disk_took(experiment: Experiment) -> None:
    plan, stream = make_node_plan(), bytes(range(200))
    with disk_full_beyond(70), pytest.raises(OSError):
        RankFiles(experiment, plan).store("gpu0", Frame(LOG, 0, stream))
    begun = RankFiles(experiment, plan).offsets[LOG]
    RankFiles(experiment, plan).store("gpu0", Frame(LOG, begun, stream[begun:]))
    assert experiment.log(0).path.read_bytes() == stream


def test_samples_go_on_behind_what_a_full_disk_took(experiment: Experiment) -> None:
    plan, stream = make_node_plan(), sample("gpu0", 1) + sample("gpu0", 2)
    with disk_full_beyond(len(stream) - 20), pytest.raises(OSError):
        RankFiles(experiment, plan).store("gpu0", Frame(GPU, 0, stream))
    begun = RankFiles(experiment, plan).offsets[GPU]
    RankFiles(experiment, plan).store("gpu0", Frame(GPU, begun, stream[begun:]))
    assert experiment.gpu.path.read_bytes() == stream


# ---- over as many connections as it takes ----


class Breaking:
    """A node with a log, whose connections end after so many bytes each; the last one lives."""

    round_trip_seconds = 0.0

    def __init__(
        self, log: bytes, lives: Sequence[int], end: bytes = b'{"code": 0}'
    ) -> None:
        self.node = make_node()
        self.log, self.lives, self.end = log, list(lives), end
        self.connections = 0

    def stream(self, argv: Sequence[str], stdin: bytes | None = b"") -> "Breaking":
        self.connections += 1
        request = json.loads((stdin or b"")[len(node_zip()) :])
        at = request["offsets"][str(LOG)]
        wire = MARK + FRAME.pack(HEARTBEAT, 0, 0)
        for offset in range(at, len(self.log), 10):
            piece = self.log[offset : offset + 10]
            wire += FRAME.pack(LOG, offset, len(piece)) + piece
        wire += FRAME.pack(EXIT, 0, len(self.end)) + self.end
        self.wire = wire[: self.lives.pop(0)] if self.lives else wire
        return self

    def write(self, data: bytes) -> None:
        raise NotImplementedError

    def read(self, silence_seconds: float) -> bytes:
        came, self.wire = self.wire[:50], self.wire[50:]
        return came

    def run(
        self, argv: Sequence[str], stdin: bytes = b"", timeout_seconds: float = 30.0
    ) -> bytes:
        raise NotImplementedError

    def close(self) -> None: ...

    def rsync_remote(self) -> tuple[list[str], str]:
        return [], ""


DISK = DiskThread()


def followed(host: Breaking, experiment: Experiment) -> tuple[RankExit, list[str]]:
    """Follow over as many connections as it takes: the rank's end, and why each connection broke off before."""
    broke_off: list[str] = []
    while True:
        try:
            end = follow_rank(
                host,
                experiment,
                make_node_plan(),
                disk=DISK,
                heartbeat_seconds=1.0,
                connected=lambda: None,
                manifest=ignored,
                notice=ignored,
            )
        except NodeFault as error:
            broke_off.append(str(error))
            assert len(broke_off) < 100
            continue
        return end, broke_off


def ignored(_told: object) -> None:
    pass


@given(st.lists(st.integers(0, 600), max_size=5))
@settings(
    max_examples=25,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    deadline=None,
)
def test_a_log_is_whole_however_often_the_connection_breaks(
    experiment: Experiment, lives: list[int]
) -> None:
    experiment.log(0).path.unlink(missing_ok=True)
    log = bytes(range(256))
    end, _ = followed(Breaking(log, lives), experiment)
    assert experiment.log(0).path.read_bytes() == log
    assert (end.code, end.failed) == (0, False)


def test_a_connection_that_breaks_off_says_so(experiment: Experiment) -> None:
    _, broke_off = followed(Breaking(b"x" * 100, [60]), experiment)
    assert broke_off == ["gpu0: its log stream broke off"]


def test_a_stream_that_comes_through_is_told_of_once(experiment: Experiment) -> None:
    told: list[bool] = []
    follow_rank(
        Breaking(b"x" * 100, []),
        experiment,
        make_node_plan(),
        disk=DISK,
        heartbeat_seconds=1.0,
        connected=lambda: told.append(True),
        manifest=ignored,
        notice=ignored,
    )
    assert told == [True]


@pytest.mark.parametrize(
    "end",
    [
        b"",
        b"null",
        b"[]",
        b'{"code": "0"}',
        b'{"code": ',
        b'{"error": "\xff"}',
        b"[" * 10**5,
    ],
)
def test_an_exit_record_that_cannot_be_read_is_a_fault_of_the_node(
    experiment: Experiment, end: bytes
) -> None:
    with pytest.raises(NodeFault, match="its exit record cannot be read"):
        follow_rank(
            Breaking(b"x", [], end),
            experiment,
            make_node_plan(),
            disk=DISK,
            heartbeat_seconds=1.0,
            connected=lambda: None,
            manifest=ignored,
            notice=ignored,
        )


@pytest.mark.parametrize(
    ("end", "failed"),
    [
        ({"code": 0}, False),
        ({"code": 1}, True),
        ({"signal": 9}, True),
        ({"lost": "gpu0 was rebooted"}, True),
        ({"code": 143, "stopped": "asked"}, False),
        ({"signal": 9, "stopped": "failure"}, False),
        ({}, True),
    ],
)
def test_a_rank_failed_where_it_ended_badly_by_itself(
    end: dict[str, Any], failed: bool
) -> None:
    assert RankExit(node="gpu0", rank=0, at=1.0, **end).failed is failed
