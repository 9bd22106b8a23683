"""Who began it? Judged from what real torchrun left behind (recordings/failures, made by record_failures.py)."""

import json
from pathlib import Path
from typing import Any

import pytest

from ugro_tasks.agent.cause import LAST_LINES, LINE_CHARACTERS, find_cause
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.outcome import RankExit
from ugro_tasks.jobs.state import Cause

RECORDINGS = sorted(
    (Path(__file__).parents[1] / "recordings" / "failures").glob("*.json")
)
FAILURES = [path for path in RECORDINGS if path.stem != "quiet_exit_0"]
# What the rank that began it said, and how it ended.
EXPECTED: dict[str, dict[str, Any]] = {
    "record": {
        "message": "rank 1 on gpu1: ValueError: the loss is nan",
        "exit_code": 1,
    },
    "plain": {
        "message": "rank 1 on gpu1: ValueError: the loss is nan",
        "exit_code": 1,
    },
    "plain_master": {
        "message": "rank 0 on gpu0: ValueError: the loss is nan",
        "exit_code": 1,
    },
    "exit_2": {"message": "rank 1 on gpu1: exit code 2", "exit_code": 2},
    "sigkill": {
        "message": "rank 1 on gpu1: killed by SIGKILL (out of memory, or somebody's kill -9)",
        "signal": "SIGKILL",
    },
    "sigsegv": {"message": "rank 1 on gpu1: killed by SIGSEGV", "signal": "SIGSEGV"},
}
LAST_LINE = {
    "record": "ValueError: the loss is nan",
    "plain": "ValueError: the loss is nan",
    "plain_master": "ValueError: the loss is nan",
    "exit_2": "epoch 1 on rank 1",
    "sigkill": "epoch 1 on rank 1",
    "sigsegv": "epoch 1 on rank 1",
}


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    (tmp_path / "exp1_20260120_120000" / "logs").mkdir(parents=True)
    return Experiment(tmp_path / "exp1_20260120_120000")


def replay(recording: Path, experiment: Experiment, first: int) -> list[RankExit]:
    """The recorded ranks' logs and ends, heard of in the order that begins with `first`."""
    ends = []
    for rank in json.loads(recording.read_text())["ranks"]:
        experiment.log(rank["rank"]).path.write_text(rank["log"])
        at = 100.0 if rank["rank"] == first else 100.4
        number = rank["rank"]
        ends.append(
            RankExit(
                node=f"gpu{number}",
                rank=number,
                at=at,
                code=rank["code"],
                error=rank["error"],
            )
        )
    return ends


def cause_of(*ends: RankExit, experiment: Experiment) -> Cause:
    return find_cause(ends, experiment)


@pytest.mark.parametrize(
    "first", [0, 1], ids=["rank 0 heard first", "rank 1 heard first"]
)
@pytest.mark.parametrize("recording", FAILURES, ids=lambda path: path.stem)
def test_the_rank_that_began_it_is_blamed(
    recording: Path, first: int, experiment: Experiment
) -> None:
    cause = cause_of(*replay(recording, experiment, first), experiment=experiment)
    guilty = json.loads(recording.read_text())["failed_rank"]
    told = {
        "message": cause.message,
        "exit_code": cause.exit_code,
        "signal": cause.signal,
    }
    assert told == {"exit_code": None, "signal": None, **EXPECTED[recording.stem]}
    assert (cause.node, cause.rank) == (f"gpu{guilty}", guilty)


@pytest.mark.parametrize("recording", FAILURES, ids=lambda path: path.stem)
def test_its_last_words_are_its_own_and_not_torchruns(
    recording: Path, experiment: Experiment
) -> None:
    cause = cause_of(*replay(recording, experiment, 1), experiment=experiment)
    words = "\n".join(cause.last_lines)
    assert LAST_LINE[recording.stem] in words
    for of_torchrun in (
        "ChildFailedError",
        "torch/distributed/elastic/multiprocessing/api",
        "Root Cause",
        "=====",
    ):
        assert of_torchrun not in words


def test_a_recorded_exception_is_told_with_its_traceback(
    experiment: Experiment,
) -> None:
    cause = cause_of(
        *replay(RECORDINGS[0].with_name("record.json"), experiment, 0),
        experiment=experiment,
    )
    assert 'File "/home/ada/ugro/jobs/exp1/train.py", line 11, in main' in "\n".join(
        cause.last_lines
    )
    assert cause.last_lines[-2:] == ("ValueError: the loss is nan", "at step 7")


def test_where_the_other_rank_left_without_a_fault_the_one_that_noticed_is_told_of(
    experiment: Experiment,
) -> None:
    ends = replay(RECORDINGS[0].with_name("quiet_exit_0.json"), experiment, 1)
    cause = cause_of(*ends, experiment=experiment)
    assert (cause.rank, "Connection closed by peer" in "\n".join(cause.last_lines)) == (
        0,
        True,
    )


def test_where_all_blame_their_peers_the_first_is_told_of(
    experiment: Experiment,
) -> None:
    for rank in range(3):
        experiment.log(rank).path.write_text(
            "RuntimeError: Connection closed by peer [10.0.0.1]:1\n"
        )
    ends = [
        RankExit(node=f"gpu{rank}", rank=rank, at=10.0 - rank, code=1)
        for rank in range(3)
    ]
    assert cause_of(*ends, experiment=experiment).rank == 2


def test_a_rank_that_was_told_to_stop_is_never_the_cause(
    experiment: Experiment,
) -> None:
    first = RankExit(node="gpu0", rank=0, at=1.0, signal=9, stopped="failure")
    second = RankExit(node="gpu1", rank=1, at=2.0, code=1)
    assert cause_of(first, second, experiment=experiment).rank == 1


def test_a_rank_that_says_it_was_told_to_stop_is_the_cause_if_no_other_is(
    experiment: Experiment,
) -> None:
    ends = [
        RankExit(node="gpu0", rank=0, at=1.0, code=0),
        RankExit(node="gpu1", rank=1, at=1.0, code=143, stopped="asked"),
    ]
    assert find_cause(ends, experiment).message == (
        "rank 1 on gpu1: it was stopped, and nobody here asked for it"
    )


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ({"lost": "gpu1 was rebooted"}, "rank 1 on gpu1: gpu1 was rebooted"),
        (
            {"interrupted": 15, "code": 1, "shutting_down": True},
            "rank 1 on gpu1: ended by SIGTERM: gpu1 was shutting down",
        ),
        (
            {"interrupted": 1, "code": 0},
            "rank 1 on gpu1: ended by SIGHUP, which UGRO did not send. Was gpu1 shut down, or a session ended there? "
            "See: journalctl -b -1 -e; loginctl show-user",
        ),
        (
            {"signal": 9, "oom_kills": 1},
            "rank 1 on gpu1: killed by SIGKILL: gpu1 ran out of memory",
        ),
        (
            {"code": 127, "error": "~/env/bin/python: No such file or directory"},
            "rank 1 on gpu1: exit code 127",
        ),
        (
            {"signal": 9},
            "rank 1 on gpu1: killed by SIGKILL (out of memory, or somebody's kill -9)",
        ),
        ({"signal": 64}, "rank 1 on gpu1: killed by SIGRTMAX"),
        (
            {"error": "prepared, but not told to start within 60 s"},
            "rank 1 on gpu1: prepared, but not told to start",
        ),
        ({}, "rank 1 on gpu1: it would not end and was killed"),
    ],
)
def test_an_end_without_a_log_is_told_all_the_same(
    end: dict[str, Any], message: str, experiment: Experiment
) -> None:
    cause = cause_of(
        RankExit(node="gpu1", rank=1, at=1.0, **end), experiment=experiment
    )
    assert cause.message.startswith(message)
    assert cause.last_lines == ()


def test_a_program_that_is_not_there_is_named(experiment: Experiment) -> None:
    end = RankExit(
        node="gpu1",
        rank=1,
        at=1.0,
        code=127,
        error="~/env/bin/python: No such file or directory",
    )
    assert "~/env/bin/python" in cause_of(end, experiment=experiment).message


@pytest.mark.parametrize(
    "error",
    [
        "", "null", "[]", "7", "{", '"x"', '{"message": null}', '{"message": "text"}', '{"message": []}',
        '{"message": {"extraInfo": []}}', '{"message": {"message": 7, "extraInfo": {"py_callstack": 7}}}',
        "not json at all", '{"message": ' + "[" * 100_000,
    ],
)  # fmt: skip
def test_an_error_file_may_hold_anything(error: str, experiment: Experiment) -> None:
    experiment.log(1).path.write_text("last words\n")
    end = RankExit(node="gpu1", rank=1, at=1.0, code=3, error=error)
    assert cause_of(end, experiment=experiment).exit_code == 3


@pytest.mark.parametrize(
    "log",
    [
        b"",
        b"\n\n\n",
        b"\xff\xfe\x00",
        b"x" * 1_000_000,
        b"no newline",
        b"\r\r\r",
        b"E1122 16:20:27.148000 1 \n",
    ],
)
def test_a_log_may_hold_anything(log: bytes, experiment: Experiment) -> None:
    experiment.log(1).path.write_bytes(log)
    cause = cause_of(
        RankExit(node="gpu1", rank=1, at=1.0, code=3), experiment=experiment
    )
    assert all(len(line) <= LINE_CHARACTERS for line in cause.last_lines)


def test_only_the_last_lines_are_told(experiment: Experiment) -> None:
    experiment.log(1).path.write_text(
        "".join(f"line {number}\n\n" for number in range(100_000))
    )
    cause = cause_of(
        RankExit(node="gpu1", rank=1, at=1.0, code=3), experiment=experiment
    )
    assert cause.last_lines == tuple(
        f"line {number}" for number in range(100_000 - LAST_LINES, 100_000)
    )


def test_a_progress_bar_is_one_line_however_often_it_was_drawn(
    experiment: Experiment,
) -> None:
    bar = "".join(f"\r{percent} %" for percent in range(100))
    experiment.log(1).path.write_bytes(f"cannot open text.txt\n{bar}\n".encode())
    cause = cause_of(
        RankExit(node="gpu1", rank=1, at=1.0, code=1), experiment=experiment
    )
    assert cause.last_lines[0] == "cannot open text.txt"


def test_a_warning_of_torch_about_host_names_is_no_last_word(
    experiment: Experiment,
) -> None:
    noise = "[W1122 16:20:10.1 socket.cpp:767] [c10d] The hostname of the client socket cannot be retrieved. err=-3\n"
    experiment.log(1).path.write_text(f"{noise}KeyError: 'text'\n{noise}")
    cause = cause_of(
        RankExit(node="gpu1", rank=1, at=1.0, code=1), experiment=experiment
    )
    assert cause.last_lines == ("KeyError: 'text'",)


# ---- ranks that were stopped for the failure of another one ----

TRACEBACK = """Traceback (most recent call last):
  File "train.py", line 4, in <module>
"""
VICTIM = TRACEBACK + "RuntimeError: [1] Connection closed by peer [10.0.0.2]:4711\n"
CULPRIT = TRACEBACK + "ValueError: the loss is nan\n"
STOPPED = TRACEBACK + "SystemExit: told to stop\n"


def stopped(rank: int, log_bytes: int | None, **more: Any) -> RankExit:
    end: dict[str, Any] = {"signal": 15, "stopped": "failure"} | more
    return RankExit(node=f"gpu{rank}", rank=rank, at=2.0, log_bytes=log_bytes, **end)


def test_a_rank_that_had_failed_when_it_was_stopped_is_the_cause_and_not_its_victim(
    experiment: Experiment,
) -> None:
    """Its interpreter takes longer to end than its peer takes to notice."""
    experiment.log(0).path.write_text(VICTIM)
    experiment.log(1).path.write_text(CULPRIT + STOPPED)
    experiment.log(2).path.write_text("step 4\n" + STOPPED)
    ends = [
        RankExit(node="gpu0", rank=0, at=1.0, code=1),
        stopped(1, len(CULPRIT)),
        stopped(2, len("step 4\n")),
    ]
    cause = find_cause(ends, experiment)
    assert cause.message == "rank 1 on gpu1: ValueError: the loss is nan"
    assert cause.last_lines[-1] == "ValueError: the loss is nan"


@pytest.mark.parametrize("log_bytes", [None, 0, len("step 4\n")])
def test_what_a_rank_says_when_it_is_stopped_blames_nobody(
    experiment: Experiment, log_bytes: int | None
) -> None:
    experiment.log(0).path.write_text(VICTIM)
    experiment.log(1).path.write_text("step 4\n" + STOPPED)
    ends = [
        RankExit(node="gpu0", rank=0, at=1.0, code=1),
        stopped(1, log_bytes),
    ]
    cause = find_cause(ends, experiment)
    assert cause.message == (
        "rank 0 on gpu0: RuntimeError: [1] Connection closed by peer [10.0.0.2]:4711"
    )


def test_a_failure_with_words_of_its_own_comes_before_a_rank_that_was_stopped(
    experiment: Experiment,
) -> None:
    experiment.log(0).path.write_text("epoch 1\n")
    experiment.log(1).path.write_text(CULPRIT)
    ends = [RankExit(node="gpu0", rank=0, at=1.0, code=3), stopped(1, len(CULPRIT))]
    assert find_cause(ends, experiment).message == "rank 0 on gpu0: exit code 3"


def test_the_words_of_an_earlier_attempt_are_not_those_of_this_one(
    experiment: Experiment,
) -> None:
    experiment.log(0).path.write_text(CULPRIT + "epoch 1\n")
    end = RankExit(node="gpu0", rank=0, at=1.0, code=1)
    cause = find_cause([end], experiment, {"log 0": len(CULPRIT)})
    assert cause.message == "rank 0 on gpu0: exit code 1"
    assert cause.last_lines == ("epoch 1",)


def test_an_exit_code_that_is_none_of_an_exception_is_told_as_it_is(
    experiment: Experiment,
) -> None:
    experiment.log(0).path.write_text(CULPRIT)
    end = RankExit(node="gpu0", rank=0, at=1.0, code=7)
    assert find_cause([end], experiment).message == "rank 0 on gpu0: exit code 7"
