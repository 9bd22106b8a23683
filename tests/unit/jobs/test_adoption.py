"""Jobs that somebody else has launched: they are shown, and nothing of them is run until they are adopted."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.unit.ended import EndedJob
from tests.unit.factories import (
    asked_to_stop,
    make_cluster,
    make_node,
    make_record,
    make_scripts,
)
from ugro_tasks.errors import NotSigned, RecordError, UgroError
from ugro_tasks.files import Folder
from ugro_tasks.jobs.adoption import adopt, would_adopt
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.snapshot import snapshot

ROOT = Path(__file__).resolve().parents[3]
CLUSTER = """
cluster:
  master:
    name: here
    ip: 127.0.0.1
    transport: local
    python: {python}
    environment: {{manager: existing, python: {python}}}
    paths: {{project: {root}/node}}
paths: {{scripts: {root}/scripts, experiments: {root}/experiments, logs: {root}/logs}}
"""


@pytest.fixture
def stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Experiment:
    """Return a queued job whose node is this machine, and whose Python is a program in the folder."""
    program = tmp_path / "pwn.sh"
    program.write_text(f"#!/bin/sh\ntouch {tmp_path}/PWNED\nexit 1\n")
    program.chmod(0o755)
    node = make_node(
        name="here",
        transport="local",
        address="127.0.0.1",
        python=str(program),
        project=str(tmp_path / "node"),
    )
    cluster = make_cluster(tmp_path, (node,))
    (tmp_path / "cluster.yaml").write_text(
        CLUSTER.format(python=program, root=tmp_path)
    )
    with monkeypatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "their-state"))
        return Experiments(tmp_path / "experiments").create(
            make_record(cluster), make_scripts(tmp_path / "scripts")
        )


def ugro(stranger: Experiment, *words: str) -> subprocess.CompletedProcess[str]:
    root = stranger.folder.parents[1]
    return subprocess.run(
        [sys.executable, "-m", "ugro_tasks.cli.program", *words],
        env={**os.environ, "UGRO_CLUSTER": str(root / "cluster.yaml"), "PYTHONPATH": str(ROOT)},
        cwd=root, capture_output=True, text=True, check=False, timeout=60, stdin=subprocess.DEVNULL,
    )  # fmt: skip


def forge(job: Experiment, **changes: Any) -> None:
    """Change the record by hand, as who has no secret must."""
    told = json.loads((job.folder / "config.json").read_text())
    (job.folder / "config.json").write_text(json.dumps({**told, **changes}))
    (job.folder / ".config.json.copy").unlink(missing_ok=True)


def nothing_was_run(job: Experiment) -> None:
    """Give an agent time to start, and see that there is none and that nothing of the job was run."""
    time.sleep(0.5)
    assert Experiments(job.folder.parent).agent_pid() is None
    assert not (job.folder.parents[1] / "PWNED").exists()
    assert job.state().phase is Phase.QUEUED


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["status"], 0),
        (["status", "exp1"], 0),
        (["logs", "exp1"], 0),
        (["results", "exp1"], 0),
        (["status", "exp1", "--live"], 13),
        (["attach", "exp1"], 13),
        (["stop", "exp1"], 13),
        (["gather", "exp1"], 13),
        (["clean", "exp1"], 0),
        (["launch", "--resume", "exp1"], 13),
        (["agent.adopt", "exp1"], 13),
    ],
    ids=lambda value: str(value),
)
def test_no_command_runs_what_lies_in_a_strangers_folder(
    stranger: Experiment, words: list[str], code: int
) -> None:
    before = (stranger.folder / "config.json").read_bytes()
    done = ugro(stranger, *words)
    assert done.returncode == code, done.stdout + done.stderr
    if code == 13 and words[0] != "agent.adopt":
        assert "ugro agent.adopt exp1_" in done.stderr
    nothing_was_run(stranger)
    assert (stranger.folder / "config.json").read_bytes() == before
    # A stop that was refused must not come into force when the job is adopted.
    assert not (stranger.folder / "stop").read_bytes().strip()


def test_the_list_of_jobs_says_why_nothing_goes_on(stranger: Experiment) -> None:
    done = ugro(stranger, "status")
    assert "queued" in done.stdout
    assert f"ugro agent.adopt {stranger.job_id}" in done.stderr


def test_an_agent_that_is_there_leaves_it_alone(stranger: Experiment) -> None:
    ours, left_alone = Experiments(stranger.folder.parent).to_supervise()
    assert ours == []
    assert "not launched by you" in left_alone[stranger.job_id]


def test_what_it_would_run_is_shown_before_it_is_adopted(stranger: Experiment) -> None:
    found = would_adopt(stranger)
    [node] = found.nodes
    assert found.record == stranger.record()
    assert (node.name, node.reached) == ("here", "local")
    assert node.python.endswith("pwn.sh")
    said = ugro(stranger, "agent.adopt", "exp1").stdout
    assert "pwn.sh" in said
    assert json.loads(ugro(stranger, "agent.adopt", "exp1", "--json").stdout)["nodes"]
    assert "nothing was done" in ugro(stranger, "--dry", "agent.adopt", "exp1").stderr
    nothing_was_run(stranger)


def test_an_adopted_job_counts_as_launched_here(stranger: Experiment) -> None:
    adopt(stranger, would_adopt(stranger))
    assert stranger.signed_record().name == "exp1"
    ours, left_alone = Experiments(stranger.folder.parent).to_supervise()
    assert ([job.job_id for job in ours], left_alone) == ([stranger.job_id], {})
    with pytest.raises(UgroError, match="yours already"):
        would_adopt(stranger)


def test_only_what_was_shown_is_adopted(stranger: Experiment) -> None:
    shown = would_adopt(stranger)
    forge(stranger, env={"LD_PRELOAD": "/tmp/pwn.so"})
    with pytest.raises(RecordError, match="changed since it was shown"):
        adopt(stranger, shown)
    assert not stranger.is_signed()
    assert "LD_PRELOAD" in ugro(stranger, "agent.adopt", "exp1").stdout


@pytest.mark.parametrize(
    "changes",
    [
        {"script": "pwn.py"},
        {"args": ["--pwn"]},
        {"cluster": {}},
        {"nonce": "0"},
        {"code": {"sha256": "0", "git_commit": None}},
        {"env": {"LD_PRELOAD": "/tmp/pwn.so"}},
        {"signature": None},
        {"format": 9},
    ],
    ids=str,
)
def test_a_changed_record_is_nobodys(tmp_path: Path, changes: dict[str, Any]) -> None:
    job = EndedJob(tmp_path).home
    forge(job, **changes)
    with pytest.raises(NotSigned):
        job.signed_record()


def test_scripts_that_were_changed_with_their_hash_are_sent_nowhere(
    tmp_path: Path,
) -> None:
    job = EndedJob(tmp_path).home
    (job.folder / "code" / "train.py").write_text("print('pwned')\n")
    code = snapshot(job.folder / "code", Folder(tmp_path, "again"))
    forge(job, code={"sha256": code.sha256, "git_commit": None})
    with pytest.raises(NotSigned):
        job.code_archive()


def test_a_record_in_another_jobs_folder_is_not_taken(tmp_path: Path) -> None:
    job = EndedJob(tmp_path).home
    moved = Experiment(job.folder.rename(job.folder.with_name("exp2_20260120_120000")))
    with pytest.raises(NotSigned, match="another job"):
        moved.signed_record()


def test_a_stop_that_is_not_signed_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = EndedJob(tmp_path).home
    other = EndedJob(tmp_path, "exp2").home
    stop = job.folder / "stop"
    for forged in (b"", b"give up", b"{}", b'{"job_id": "exp1"}', b"\0" * 1024):
        stop.write_bytes(forged)
        assert not asked_to_stop(job)
    other.ask_to_stop()
    stop.write_bytes((other.folder / "stop").read_bytes())
    assert not asked_to_stop(job)
    with monkeypatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path / "their-state"))
        job.ask_to_stop()
    assert not asked_to_stop(job)
    job.ask_to_stop(give_up=True)
    assert asked_to_stop(job, give_up=True)


def test_a_secret_that_cannot_be_used_is_no_request_and_no_end_of_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    job = EndedJob(tmp_path).home
    job.ask_to_stop()
    key = tmp_path / "state" / "ugro" / "signing.key"
    key.chmod(0o644)
    assert not asked_to_stop(job)
    key.chmod(0o600)
    assert asked_to_stop(job)


def test_a_stop_can_be_asked_for_on_a_full_disk(tmp_path: Path) -> None:
    """Its file is there from the start, with room for the request."""
    job = EndedJob(tmp_path).home
    assert len((job.folder / "stop").read_bytes()) == 1024
    inode = (job.folder / "stop").stat().st_ino
    job.ask_to_stop()
    assert (job.folder / "stop").stat().st_ino == inode
    assert (job.folder / "stop").stat().st_size == 1024
