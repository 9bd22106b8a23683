"""Bad command lines: one clear error, an exit code of its own, no traceback, and nothing written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from invoke.context import Context

from ugro_tasks.cli.task import TaskFailed, task

ROOT = Path(__file__).parents[3]
BAD = [
    (["launch", "--name", "../../etc/x"], 2, "--name '../../etc/x'"),
    (
        ["launch", "--name", "exp1", "--epochs", "three"],
        2,
        "--epochs three: must be a whole number, at least 1",
    ),
    (["launch", "--name", "exp1", "--epochs", "0"], 2, "--epochs 0"),
    (
        ["launch", "--name", "exp1", "--lr", "abc"],
        2,
        "--lr abc: must be a number, greater than 0",
    ),
    (["launch", "--name", "exp1", "--lr", "-1"], 2, "--lr -1"),
    (["launch", "--name", "exp1", "--lr", "nan"], 2, "--lr nan"),
    (
        ["launch", "--name", "exp1", "--env", "NOVALUE"],
        2,
        "--env NOVALUE: use KEY=VALUE",
    ),
    (["launch", "--name", "exp1", "--env", "UGRO_TOKEN=x"], 2, "--env UGRO_TOKEN"),
    (["launch", "--name", "exp1", "--args", "'open"], 2, "No closing quotation"),
    (
        ["launch", "--name", "exp1", "--script", "../evil.py"],
        2,
        "--script '../evil.py'",
    ),
    (["launch", "--name", "exp1", "--script", "absent.py"], 2, "train_single_test.py"),
    (
        ["launch", "--name", "exp1", "--nodes", "local0,gpu9"],
        2,
        "there is no node 'gpu9'",
    ),
    (["launch", "--name", "exp1", "--nodes", "local0,local0"], 2, "given 2 times"),
    (["health", "--cluster", "nowhere.yaml"], 3, "nowhere.yaml"),
    (["attach", "exp9"], 4, "no job called 'exp9'"),
    (["logs", "exp9"], 4, "no job called 'exp9'"),
    (["stop", "exp9"], 4, "no job called 'exp9'"),
    (["status", "--live"], 2, "--live needs the name of a job"),
    (["clean", "exp9"], 4, "no job called 'exp9'"),
    (["clean", "exp9", "--older-than", "30d"], 4, "no job called 'exp9'"),
    (["clean", "--older-than", "30"], 2, "--older-than 30: use hours, days or weeks"),
    (["clean", "--keep-last", "-1"], 2, "--keep-last -1: use a whole number"),
    (
        ["clean", "--keep-last=2", "--older-than=4w", "--name", "exp9"],
        4,
        "no job called 'exp9'",
    ),
    (["clean", "--nodes", "local0,gpu9"], 2, "there is no node 'gpu9'"),
    (["results", "exp9", "--plot", "out.svg"], 4, "no job called 'exp9'"),
    (
        ["launch", "--name", "exp1", "--epoch", "3"],
        2,
        "'--epoch' is! Did you mean --epochs?",
    ),
    (["launch", "--name", "exp1", "--dry-rum"], 2, "Did you mean --dry-run?"),
    (["lauch"], 2, "No idea what 'lauch' is! Did you mean launch?"),
    (["--help", "lauch"], 2, "Did you mean launch?"),
    (["xyzzy"], 2, "No idea what 'xyzzy' is! See: ugro --help"),
    (["--dri", "status"], 2, "Did you mean --dry?"),
    (["--echo", "status"], 2, "No idea what '--echo' is!"),
    (["logs"], 2, "See: ugro --help logs"),
    (["stop", "exp1", "exp2"], 2, "No idea what 'exp2' is!"),
]


@pytest.mark.parametrize(
    ("words", "code", "says"), BAD, ids=[" ".join(words) for words, _, _ in BAD]
)
def test_a_bad_command_line_is_one_clear_error(
    words: list[str], code: int, says: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ugro_tasks.cli.program", *words],
        cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "UGRO_CLUSTER": "local", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_a_name_left_out_before_help_means_the_help(flag: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("ugro"), "logs", flag],
        cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "UGRO_CLUSTER": "local"},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "--follow" in done.stdout


@pytest.mark.parametrize("closed", [(0,), (1,), (2,), (0, 1, 2)])
def test_closed_streams_are_no_reason_to_fail(
    closed: tuple[int, ...], tmp_path: Path
) -> None:
    redirections = " ".join(f"{descriptor}>&-" for descriptor in closed)
    command = f'exec "$0" -m ugro_tasks.cli.program --help launch {redirections}'
    done = subprocess.run(
        ["sh", "-c", command, sys.executable],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert bool(done.stdout) is (1 not in closed)


@pytest.mark.parametrize("encoding", ["latin-1", "ascii", "utf-8"])
def test_what_an_encoding_lacks_is_shown_as_question_marks(
    encoding: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "ugro_tasks.cli.program", "health", "--cluster", "local"],
        cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": encoding},
        capture_output=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 5, done.stderr  # there is no environment
    assert b"Traceback" not in done.stderr
    mark = "\N{BALLOT X}".encode(encoding, "replace")
    assert mark + b"  local0" in done.stdout


def test_ctrl_c_ends_any_command_with_a_word_and_130() -> None:
    @task(help={})
    def waits(_context: Context) -> None:
        raise KeyboardInterrupt

    with pytest.raises(TaskFailed, match="interrupted") as failed:
        waits(Context())
    assert failed.value.exit_code == 130
