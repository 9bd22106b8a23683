"""The agent as a process: one, when there is something to do, and it may be killed."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab.tools import wait_until
from tests.unit.factories import (
    damage,
    make_cluster,
    make_node,
    make_record,
    make_scripts,
)
from ugro_tasks.cluster.model import Environment, Timeouts
from ugro_tasks.errors import RecordError
from ugro_tasks.jobs.agent_process import ensure_agent
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.signature import sign
from ugro_tasks.jobs.state import JobState

# An agent outlives the command that started it: nobody waits for it.
pytestmark = pytest.mark.filterwarnings(
    "ignore:subprocess .* is still running:ResourceWarning"
)


@pytest.fixture
def experiments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Experiments]:
    """A folder of this test's own, with the agents of it ended afterwards."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    # Their records have one nonce, and ids of the same second.
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    made = Experiments(tmp_path / "experiments")
    made.make_folder()
    yield made

    def gone() -> bool:
        pid = made.agent_pid()
        if pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return pid is None

    wait_until(gone, "the agent to end")


def queue(
    experiments: Experiments, linger_seconds: float, name: str = "exp1"
) -> Experiment:
    """A job that its one node refuses, since the node has no such Python: the shortest life of a job."""
    root = experiments.folder.parent
    node = make_node(
        transport="local", address="127.0.0.1", python=sys.executable, project=str(root / "node"),
        environment=Environment(manager="existing", python="/nowhere/python"),
    )  # fmt: skip
    cluster = make_cluster(
        root, (node,), timeouts=Timeouts(agent_linger_seconds=linger_seconds)
    )
    scripts = make_scripts(root / "scripts")
    return experiments.create(make_record(cluster, name=name), scripts)


def agent_of(experiments: Experiments) -> int:
    """The pid of the agent that is there, or comes."""
    found: list[int] = []

    def come() -> bool:
        found.append(experiments.agent_pid() or 0)
        return bool(found[-1])

    wait_until(come, "an agent")
    return found[-1]


def ended(experiment: Experiment) -> JobState:
    wait_until(lambda: experiment.state().phase.finished, "the job to end", 30)
    return experiment.state()


def test_an_agent_is_started_once(experiments: Experiments) -> None:
    queue(experiments, linger_seconds=60)
    pid = ensure_agent(experiments)
    assert agent_of(experiments) == pid
    assert ensure_agent(experiments) is None
    assert experiments.agent_pid() == pid


def test_of_agents_that_are_started_at_once_one_stays(experiments: Experiments) -> None:
    queue(experiments, linger_seconds=60)
    argv = [sys.executable, "-m", "ugro_tasks.agent", str(experiments.folder)]
    agents = [subprocess.Popen(argv, cwd=Path(__file__).parents[3]) for _ in range(2)]
    wait_until(
        lambda: any(agent.poll() is not None for agent in agents),
        "one of them to leave",
        20,
    )
    [left] = [agent for agent in agents if agent.poll() is not None]
    [stays] = [agent for agent in agents if agent is not left]
    assert (left.returncode, experiments.agent_pid()) == (0, stays.pid)
    stays.kill()
    stays.wait()


def test_an_agent_sees_a_queued_job_through_and_leaves(
    experiments: Experiments,
) -> None:
    experiment = queue(experiments, linger_seconds=0.1)
    ensure_agent(experiments)
    assert ended(experiment).phase is Phase.REFUSED
    wait_until(lambda: experiments.agent_pid() is None, "the agent to leave")
    assert experiments.agent_stderr.path.read_text() == ""


def test_an_agent_that_lingers_takes_the_next_job(experiments: Experiments) -> None:
    first = queue(experiments, linger_seconds=60)
    ensure_agent(experiments)
    pid = agent_of(experiments)
    ended(first)
    second = queue(experiments, linger_seconds=60, name="exp2")
    assert ended(second).phase is Phase.REFUSED
    assert experiments.agent_pid() == pid


def test_after_an_agent_was_killed_the_next_goes_on(experiments: Experiments) -> None:
    queue(experiments, linger_seconds=60)
    ensure_agent(experiments)
    first = agent_of(experiments)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: experiments.agent_pid() is None, "the agent to end")
    experiment = queue(experiments, linger_seconds=60, name="exp2")
    second = ensure_agent(experiments)
    assert second not in {None, first}
    assert ended(experiment).phase is Phase.REFUSED


def test_an_agent_without_a_job_leaves_at_once(experiments: Experiments) -> None:
    ensure_agent(experiments)
    wait_until(lambda: experiments.agent_pid() is None, "the agent to leave")


def test_an_agent_lives_in_a_session_of_its_own(experiments: Experiments) -> None:
    queue(experiments, linger_seconds=60)
    ensure_agent(experiments)
    pid = agent_of(experiments)
    assert os.getsid(pid) == pid


def test_a_damaged_job_is_no_harm_to_the_next(experiments: Experiments) -> None:
    damaged = queue(experiments, linger_seconds=0.1)
    damage(damaged, "config.json", b"{")
    experiment = queue(experiments, linger_seconds=0.1, name="exp2")
    ensure_agent(experiments)
    assert ended(experiment).phase is Phase.REFUSED
    assert damaged.job_id in experiments.agent_stderr.path.read_text()
    assert damaged.state().phase is Phase.QUEUED


LATER: list[tuple[str, dict[str, Any], str]] = [
    ("state.json", {"format": 3, "queue": {"place": 7}}, "format 3"),
    ("state.json", {"state": "hibernating"}, "hibernating"),
    ("config.json", {"format": 3, "cards": [0]}, "format 3"),
    ("config.json", {"kind": "symphony"}, "symphony"),
]


@pytest.mark.parametrize(("name", "fields", "word"), LATER, ids=str)
def test_what_a_later_version_wrote_is_left_alone_and_the_next_job_is_run(
    experiments: Experiments, name: str, fields: dict[str, Any], word: str
) -> None:
    later = queue(experiments, linger_seconds=0.1)
    told = json.loads((later.folder / name).read_text()) | fields
    if name == "config.json":
        told = sign(told, "job")
    (later.folder / name).write_text(json.dumps(told))
    before = {path.name: path.read_bytes() for path in later.folder.glob("*.json*")}
    experiment = queue(experiments, linger_seconds=0.1, name="exp2")
    ensure_agent(experiments)
    assert ended(experiment).phase is Phase.REFUSED
    wait_until(lambda: experiments.agent_pid() is None, "the agent to leave")
    assert {
        path.name: path.read_bytes() for path in later.folder.glob("*.json*")
    } == before
    said = experiments.agent_stderr.path.read_text()
    assert later.job_id in said
    assert word in said
    with pytest.raises(RecordError, match="update UGRO"):
        later.check_supervisable()


def test_a_job_is_not_run_again_by_the_next_agent(experiments: Experiments) -> None:
    experiment = queue(experiments, linger_seconds=0.1)
    ensure_agent(experiments)
    state = ended(experiment)
    wait_until(lambda: experiments.agent_pid() is None, "the agent to leave")
    ensure_agent(experiments)
    wait_until(lambda: experiments.agent_pid() is None, "the agent to leave")
    assert experiment.state() == state
