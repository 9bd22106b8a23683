"""The tasks as Invoke's citizens: in somebody's own collection, from Python, with Invoke's flags and configuration."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from invoke.context import Context

from ugro_tasks.cli.collection import ns
from ugro_tasks.errors import JobNotFound, UgroError, UsageError

ROOT = Path(__file__).parents[3]
INV = Path(sys.executable).with_name("inv")
UGRO = [sys.executable, "-m", "ugro_tasks.cli.program"]

MOUNTED = """
from invoke import Collection, task
from ugro_tasks.cli.collection import ns as ugro

ns = Collection()
ns.add_collection(ugro, name="gpu")
"""


def _run(
    argv: list[str | Path], folder: Path, **environ: str
) -> subprocess.CompletedProcess[str]:
    base = {
        "PATH": "/usr/bin:/bin",
        "PYTHONPATH": str(ROOT),
        "HOME": str(folder),
        "COLUMNS": "120",
    }
    return subprocess.run(
        argv, cwd=folder, env=base | environ,
        capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


@pytest.fixture
def mounted(tmp_path: Path) -> Path:
    (tmp_path / "tasks.py").write_text(MOUNTED)
    return tmp_path


# ---- in somebody's own collection ----


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["gpu.status"], 0, "no job yet; begin one: inv gpu.launch --name exp1"),
        (["gpu.status", "exp9"], 4, "no job called 'exp9'"),
        (["gpu.logs", "-f", "exp9"], 4, "no job called 'exp9'"),
        (["gpu.clean", "exp8", "exp9"], 4, "no job called 'exp8'"),
        (["gpu.stop", "exp9"], 4, "no job called 'exp9'"),
        (["gpu.attach", "exp9", "-q"], 4, "no job called 'exp9'"),
        (["gpu.launch", "-n", "x", "-e", "0"], 2, "--epochs 0"),
        (["gpu.sync-envs", "--nodes", "gpu9"], 2, "there is no node 'gpu9'"),
        (["gpu.reset", "--nodes", "gpu9"], 2, "there is no node 'gpu9'"),
    ],
)
def test_a_task_works_under_the_name_that_somebody_gave_it(
    words: list[str], code: int, says: str, mounted: Path
) -> None:
    done = _run([INV, *words], mounted, UGRO_CLUSTER="local")
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words", [["gpu.logs", "--help"], ["gpu.logs", "-h"], ["--help", "gpu.logs"]]
)
def test_the_help_of_a_mounted_task_is_shown(words: list[str], mounted: Path) -> None:
    done = _run([INV, *words], mounted)
    assert done.returncode == 0, done.stderr
    assert "--follow" in done.stdout
    assert "Usage: inv[oke] [--core-opts] gpu.logs" in done.stdout


def test_a_dry_task_of_somebodys_collection_removes_nothing(mounted: Path) -> None:
    done = _run([INV, "--dry", "gpu.clean"], mounted, UGRO_CLUSTER="local")
    assert (done.returncode, done.stdout) == (
        0,
        "0 B would be freed; nothing was removed\n",
    )


# ---- from Python ----


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UGRO_CLUSTER", "local")
    monkeypatch.setattr("sys.argv", ["pytest", "status", "logs", "--help"])
    return tmp_path


def test_a_task_called_from_python_returns_what_it_printed(here: Path) -> None:
    assert ns["status"](Context()) == []
    cleaned = ns["clean"](Context(), dry_run=True, nodes=["local0", "local1"])
    assert (cleaned.dry_run, cleaned.removals) == (True, [])


def test_a_caller_catches_the_error_of_a_task(here: Path) -> None:
    with pytest.raises(UgroError) as caught:
        ns["logs"](Context(), "exp9")
    assert caught.value.exit_code == JobNotFound.exit_code
    assert isinstance(caught.value.__cause__, JobNotFound)
    with pytest.raises(UgroError, match=r"3\.5: must be a whole number") as wrong:
        ns["launch"](Context(), epochs=3.5, dry_run=True)
    assert isinstance(wrong.value.__cause__, UsageError)


# ---- Invoke's configuration ----


def test_the_cluster_of_invokes_configuration_counts_below_ours(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(
        MOUNTED + 'ns.configure({"ugro": {"cluster": "of_the_tasks"}})\n'
    )
    status: list[str | Path] = [INV, "gpu.status"]
    assert "'of_the_tasks'" in _run(status, tmp_path).stderr
    (tmp_path / "invoke.yaml").write_text("ugro: {cluster: of_the_file}\n")
    assert "'of_the_file'" in _run(status, tmp_path).stderr
    assert "'of_the_file'" in _run([*UGRO, "status"], tmp_path).stderr
    assert (
        "'of_invoke'" in _run(status, tmp_path, INVOKE_UGRO_CLUSTER="of_invoke").stderr
    )
    assert (
        "'of_invoke'"
        in _run([*UGRO, "status"], tmp_path, INVOKE_UGRO_CLUSTER="of_invoke").stderr
    )
    both = {"INVOKE_UGRO_CLUSTER": "of_invoke", "UGRO_CLUSTER": "of_ugro"}
    assert "'of_ugro'" in _run(status, tmp_path, **both).stderr
    assert "'of_a_flag'" in _run([*status, "-c", "of_a_flag"], tmp_path, **both).stderr


@pytest.mark.parametrize("text", ["ugro: {cluster: 3}", "ugro: [", "- a list"])
def test_a_configuration_that_cannot_be_used_is_one_clear_error(
    text: str, tmp_path: Path
) -> None:
    (tmp_path / "invoke.yaml").write_text(text)
    done = _run([*UGRO, "status"], tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr


def test_ugro_runs_no_code_of_the_folder_where_it_is_called(tmp_path: Path) -> None:
    (tmp_path / "invoke.py").write_text("raise SystemExit('ran')\n")
    done = _run(
        [Path(sys.executable).with_name("ugro"), "status"],
        tmp_path,
        UGRO_CLUSTER="local",
    )
    assert done.returncode == 0, done.stderr


# ---- help ----


def test_the_help_is_grouped_and_lists_every_task(tmp_path: Path) -> None:
    for flag in ("--help", "--list"):
        lines = _run([*UGRO, flag], tmp_path).stdout.splitlines()
        assert [
            line[:-1] for line in lines if line in {f"{group}:" for group in GROUPS}
        ] == GROUPS
        assert {
            name
            for name in ns.task_names
            if any(line.startswith(f"  {name} ") for line in lines)
        } == {*ns.task_names}


GROUPS = ["start here", "run", "look", "cluster"]


@pytest.mark.parametrize("words", ["--help launch", "--list"])
def test_help_into_a_pipe_that_is_closed_is_quiet(words: str, tmp_path: Path) -> None:
    script = f"{sys.executable} -m ugro_tasks.cli.program {words} | head -n 1"
    done = _run(["bash", "-c", script], tmp_path)
    assert done.stdout.count("\n") == 1
    assert done.stderr == ""
    gone = f"{sys.executable} -m ugro_tasks.cli.program {words} | true; exit ${{PIPESTATUS[0]}}"
    done = _run(["bash", "-c", gone], tmp_path)
    assert done.stderr == ""
    assert done.returncode in {0, 141}  # it may have written before the reader had gone


def test_the_list_for_machines_is_json(tmp_path: Path) -> None:
    assert _run([*UGRO, "--list", "--list-format", "json"], tmp_path).stdout.startswith(
        "{"
    )
    done = _run([*UGRO, "--list", "--list-format", "xml"], tmp_path)
    assert (done.returncode, done.stderr) == (
        2,
        "--list-format xml: use flat, nested or json\n",
    )
