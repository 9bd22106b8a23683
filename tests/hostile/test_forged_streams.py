"""What a node streams and sends: it fills the files of its own rank, and nothing else here, and not without end."""

from __future__ import annotations

import contextlib
import errno
import json
import logging
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lab.tools import wait_until
from tests.hostile.nodes import HostileHost
from tests.hostile.profiles import examples
from tests.hostile.running import RAW, tree
from tests.hostile.strategies import changed, dumped, json_values, text
from tests.unit.ended import EndedJob
from tests.unit.factories import make_node, make_node_plan
from ugro_tasks.agent.cause import find_cause
from ugro_tasks.backends.ssh.disk_thread import DiskThread
from ugro_tasks.backends.ssh.streams import _end, follow_rank
from ugro_tasks.errors import HostError, NodeFault
from ugro_tasks.hosts.copy import Copy
from ugro_tasks.hosts.local import LocalHost
from ugro_tasks.hosts.rsync import Rsync
from ugro_tasks.hosts.streams import Frame
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.outcome import RankExit
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.plan import NodePlan
from ugro_tasks.jobs.state import JobState
from ugro_tasks.node.protocol import (
    CHUNK_BYTES,
    EXIT,
    FRAME,
    GPU,
    HEARTBEAT,
    LOG,
    LOST,
    MANIFEST,
    MARK,
    METRICS,
)
from ugro_tasks.outputs.checkpoints import FAULTS_TOLD, MANIFESTS_MOST, Mirror
from ugro_tasks.outputs.streams import RankFiles

KINDS = [HEARTBEAT, LOG, METRICS, GPU, EXIT, LOST, MANIFEST, 7, 0x7F, 0x80 | LOG, 0xFF]
GOOD_END = FRAME.pack(EXIT, 0, 13) + b'{"code":null}'


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    job = EndedJob(tmp_path, "exp1", stamp="20260120_120000")
    return job.home


DISK = DiskThread()


def follow(
    experiment: Experiment, plan: NodePlan, *connections: bytes
) -> tuple[RankExit, list[str]]:
    """How following a node ends that says these on one connection after the other, and what was said about it."""
    left = list(connections)
    host = HostileHost(
        make_node(plan.rank), lambda *_: MARK + (left.pop(0) if left else GOOD_END)
    )
    told: list[str] = []
    while True:
        try:
            end = follow_rank(
                host,
                experiment,
                plan,
                disk=DISK,
                heartbeat_seconds=1.0,
                connected=lambda: None,
                manifest=lambda _: None,
                notice=lambda _: None,
            )
        except HostError as error:
            told.append(str(error))
            assert len(told) <= len(connections)
            continue
        return end, told


frames = st.builds(
    lambda kind, offset, payload, length: (
        FRAME.pack(kind, offset, len(payload) if length is None else length) + payload
    ),
    st.sampled_from(KINDS),
    st.sampled_from([0, 0, 0, 1, 5, 2**63, 2**64 - 1]),
    st.binary(max_size=40) | json_values.map(dumped),
    st.sampled_from([None, None, None, 0, 3, 2 * CHUNK_BYTES + 1, 2**32 - 1]),
)


@examples(60)
@given(
    rank=st.integers(0, 1),
    said=st.lists(st.lists(frames, max_size=5).map(b"".join), max_size=3),
)
def test_any_frames_fill_the_files_of_their_rank_or_nothing(
    tmp_path: Path, rank: int, said: list[bytes]
) -> None:
    root = Path(tempfile.mkdtemp(dir=tmp_path))
    folder = root / "exp1_20260120_120000"
    (folder / "logs").mkdir(parents=True)
    end, told = follow(Experiment(folder), make_node_plan(rank), *said)
    written = {
        name: content
        for name, content in tree(root).items()
        if isinstance(content, bytes)
    }
    allowed = {"metrics.jsonl"} if rank == 0 else set()
    assert {name.partition("/")[2] for name in written} <= {
        f"logs/training_rank{rank}.log",
        "gpu.jsonl",
        *allowed,
    }
    # Compressed ones grow.
    assert sum(map(len, written.values())) <= 10 * sum(map(len, said))
    assert len("".join(told)) < 20_000
    assert not RAW.search(
        "\n".join(str(NodeFault("x", line).text) for line in told).replace("\n", "")
    )
    state = JobState(phase=Phase.FAILED, cause=find_cause([end], Experiment(folder)))
    assert len(msgspec.json.encode(state)) < 100_000


RECORD: dict[str, Any] = {
    "code": 1,
    "signal": None,
    "error": '{"message": {"message": "x", "extraInfo": {"py_callstack": "y"}}}',
    "stopped": None,
}
RECORD |= {"started_at": 1.0, "outputs": ["checkpoints"]}


@examples(100)
@given(record=changed(RECORD, times=2) | json_values, log=text | st.binary(max_size=50))
@example(record=RECORD | {"error": "x" * 400_000, "code": None}, log="")
@example(
    record=RECORD | {"error": json.dumps({"message": {"message": "x" * 400_000}})},
    log="",
)
@example(
    record=RECORD
    | {
        "error": json.dumps(
            {"message": {"extraInfo": {"py_callstack": "x\n" * 100_000}}}
        )
    },
    log="",
)
@example(record=RECORD | {"error": "[" * 100_000}, log="")
@example(record=RECORD | {"code": 10**40, "signal": 10**40}, log="")
@example(record=RECORD | {"signal": -5}, log="")
@example(
    record=RECORD,
    log=f"E0120 12:00:00.1 1 torch/distributed/elastic/multiprocessing/api.py:1] x\n exitcode : {'9' * 5000}\n",
)
@example(record=RECORD, log="=" * 60_000 + "\n")
@example(record=RECORD, log="[W" + " [c10d] " * 8_000)
def test_any_exit_record_is_a_cause_or_a_fault(
    tmp_path: Path, record: Any, log: str | bytes
) -> None:
    folder = Path(tempfile.mkdtemp(dir=tmp_path)) / "exp1_20260120_120000"
    (folder / "logs").mkdir(parents=True)
    experiment = Experiment(folder)
    experiment.log(0).path.write_bytes(
        log if isinstance(log, bytes) else log.encode("utf-8", "replace")
    )
    plan = make_node_plan()
    begun = time.monotonic()
    for kind in (EXIT, LOST):
        try:
            end = _end(
                HostileHost(make_node(), lambda *_: b""),
                plan,
                Frame(kind, 0, dumped(record)),
            )
        except NodeFault as fault:
            assert len(fault.text) < 5_000
            continue
        state = JobState(phase=Phase.FAILED, cause=find_cause([end], experiment))
        assert len(msgspec.json.encode(state)) < 100_000
    assert time.monotonic() - begun < 10


def test_a_job_ends_although_it_wrote_a_file_whose_name_is_no_text(
    tmp_path: Path, experiment: Experiment
) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    record = RECORD | {
        "code": 0,
        "error": None,
        "outputs": [os.fsdecode(b"\xff\xfe"), "checkpoints"],
    }
    (folder / "exit.json").write_text(json.dumps(record))
    node = make_node(transport="local", python=sys.executable)
    end = follow_rank(
        LocalHost(node),
        experiment,
        make_node_plan(folder=str(folder)),
        disk=DISK,
        heartbeat_seconds=1.0,
        connected=lambda: None,
        manifest=lambda _: None,
        notice=lambda _: None,
    )
    assert (end.code, end.lost) == (0, None)
    assert "checkpoints" in end.outputs


# ---- without end ----


def test_samples_without_an_end_of_line_are_not_kept(experiment: Experiment) -> None:
    files = RankFiles(experiment, make_node_plan())
    taken = 0
    with contextlib.suppress(NodeFault):
        for offset in range(0, 1_000_000, 10_000):
            files.store("gpu0", Frame(GPU, offset, b"x" * 10_000))
            taken = offset
    assert taken < 100_000


@pytest.mark.parametrize(
    "line",
    [
        b'{"node": "gpu1"}\n',
        b'{"node": "gpu0", "x": {"node": "gpu1"}}\n',
        b"junk\n",
        b"\n",
        b'{"node":"gpu0"}\n',
    ],
)
def test_samples_of_another_node_are_refused(
    experiment: Experiment, line: bytes
) -> None:
    before = experiment.gpu_bytes("gpu1")
    with pytest.raises(NodeFault):
        RankFiles(experiment, make_node_plan()).store("gpu0", Frame(GPU, 0, line))
    assert experiment.gpu_bytes("gpu1") == before


class _Disk:
    """What statvfs tells of a disk that is nearly full."""

    f_frsize, f_blocks, f_bavail = 4096, 100_000_000, 1000
    f_files, f_favail = 1_000_000, 900_000


def test_a_node_cannot_take_the_last_room_of_the_disk(
    experiment: Experiment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.statvfs", lambda _path: _Disk)
    for kind in (LOG, METRICS):
        with pytest.raises(OSError, match="No space left"):
            RankFiles(experiment, make_node_plan()).store(
                "gpu0",
                Frame(
                    kind, RankFiles(experiment, make_node_plan()).offsets[kind], b"x"
                ),
            )
    # What UGRO itself has to say has room.
    experiment.save_state(JobState(phase=Phase.FAILED))


@pytest.mark.parametrize(
    "way", [pytest.param(Rsync, marks=pytest.mark.needs("rsync")), Copy]
)
def test_a_transfer_cannot_take_the_last_room_of_the_disk(
    experiment: Experiment,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    way: type[Rsync] | type[Copy],
) -> None:
    monkeypatch.setattr("os.statvfs", lambda _path: _Disk)
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "large").write_bytes(b"x" * 1000)
    host = LocalHost(make_node(transport="local", python=sys.executable))
    with pytest.raises(OSError) as full:
        way(host).pull(f"{tmp_path}/there/", f"{experiment.folder}/")
    assert full.value.errno == errno.ENOSPC


def test_an_rsync_that_complains_without_end_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "bin" / "rsync"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexec yes complaint >&2\n")
    program.chmod(0o755)
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with pytest.raises(NodeFault, match="without end"):
        Rsync(LocalHost(make_node())).pull("/nowhere/", f"{tmp_path}/here/")


@pytest.mark.parametrize("number", ["28", "999", "9" * 5000, "-1"])
def test_a_full_disk_that_only_the_other_side_speaks_of_is_no_crash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: str
) -> None:
    program = tmp_path / "bin" / "rsync"
    program.parent.mkdir()
    program.write_text(
        f"#!/bin/sh\necho 'rsync: \"/x\" failed: No space left on device ({number})' >&2\nexit 11\n"
    )
    program.chmod(0o755)
    (tmp_path / "here").mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    with pytest.raises((NodeFault, OSError)):
        Rsync(LocalHost(make_node())).pull("/nowhere/", f"{tmp_path}/here/")


def test_a_flood_of_manifests_is_neither_kept_nor_written_about_without_end(
    experiment: Experiment, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("flood")
    mirror = Mirror(
        experiment, {"gpu1": HostileHost(make_node(1), lambda *_: b"")}, log
    )
    plan = make_node_plan(1)
    with caplog.at_level(logging.WARNING, "flood"):
        for number in range(5 * MANIFESTS_MOST):
            mirror.take(
                plan,
                dumped(
                    {
                        "checkpoint": f"c{number}",
                        "step": number,
                        "rank": 1,
                        "ranks": [1],
                        "files": {},
                    }
                ),
            )
            mirror.take(plan, b"junk")
        wait_until(mirror._asked.empty, "the flood to be read")
        mirror.end()
        mirror.wait()
    assert len(caplog.records) <= FAULTS_TOLD
    assert (
        sum(len(waiting) for _, waiting in mirror._waiting.values()) <= MANIFESTS_MOST
    )
