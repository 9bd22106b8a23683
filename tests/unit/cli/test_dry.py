"""`--dry`: every task that acts shows what it would do, and does nothing."""

from __future__ import annotations

import io
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
from invoke.context import Context

from tests.unit.factories import make_record, make_scripts
from ugro_tasks.backends.ssh import reset
from ugro_tasks.cli.collection import ns
from ugro_tasks.cli.program import UgroProgram
from ugro_tasks.cluster.file import load_cluster
from ugro_tasks.environments import sync
from ugro_tasks.health import init
from ugro_tasks.jobs import agent_process
from ugro_tasks.jobs.experiment import Experiment
from ugro_tasks.jobs.experiments import Experiments
from ugro_tasks.launch import deep_health, submit
from ugro_tasks.outputs import gather

ACTS = [
    (reset, "reset"),
    (sync, "sync"),
    (init, "trust_host_keys"),
    (init, "make_folders"),
    (submit, "submit"),
    (deep_health, "measure"),
    (gather, "gather"),
    (agent_process, "ensure_agent"),
    (Experiment, "ask_to_stop"),
    (Experiments, "make_folder"),
    (Experiments, "save_cluster_state"),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the local cluster and one queued job, in which nothing may be done."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UGRO_CLUSTER", "local")
    cluster = load_cluster("local")
    scripts = make_scripts(tmp_path / "scripts")
    Experiments(cluster.experiments).create(make_record(cluster, name="exp1"), scripts)

    def act(*_: object, **__: object) -> None:
        pytest.fail("something was done")

    for where, name in ACTS:
        monkeypatch.setattr(where, name, act)
    return tmp_path


def _files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def _dry(*words: str) -> tuple[int, str]:
    said = io.StringIO()
    code = 0
    with redirect_stdout(said), redirect_stderr(said):
        try:
            UgroProgram().run(["ugro", *words])
        except SystemExit as end:
            code = int(end.code or 0)
    return code, said.getvalue()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--dry stop exp1", "(queued) on local0, local1, local2; nothing was done"),
        ("stop exp1 --dry", "(queued) on local0, local1, local2; nothing was done"),
        ("--dry gather exp1", "from local0, local1, local2; nothing was done"),
        ("--dry clean", "0 B would be freed; nothing was removed"),
        ("--dry reset", "local2: would end everything of UGRO there; now: "),
        ("--dry init", "local2: would make the folder "),
        ("--dry sync-envs", "would be"),
        ("--dry status", "queued"),
    ],
)
def test_a_dry_task_shows_and_does_nothing(words: str, says: str, place: Path) -> None:
    before = _files(place)
    code, said = _dry(*words.split())
    assert says in said
    assert code == 0, said
    assert _files(place) == before


def test_a_dry_launch_shows_the_plan(place: Path) -> None:
    before = _files(place)
    code, said = _dry("--dry", "launch", "--script", "train.py")
    assert (code, "train_<time>: 3 ranks meet at 127.0.0.1" in said) == (0, True), said
    assert _files(place) == before


def test_a_dry_health_keeps_no_record(place: Path) -> None:
    before = _files(place)
    _, said = _dry("--dry", "health", "--deep")
    assert "3 nodes in" in said
    assert _files(place) == before


def test_invokes_configuration_says_dry_to_a_call_from_python(place: Path) -> None:
    context = Context()
    context.config.run.dry = True
    state = ns["stop"](context, "exp1")
    assert str(state.phase) == "queued"


def test_echo_is_verbose_and_hide_is_quiet_where_a_task_has_those(place: Path) -> None:
    from ugro_tasks.cli.task import task

    @task(help={"verbose": "v", "quiet": "q"})
    def tell(
        _context: object, verbose: bool = False, quiet: bool = False
    ) -> tuple[bool, bool]:
        return verbose, quiet

    context = Context()
    assert tell(context) == (False, False)
    context.config.run.echo = True
    assert tell(context) == (True, False)
    context.config.run.hide = "both"
    assert tell(context) == (True, True)
