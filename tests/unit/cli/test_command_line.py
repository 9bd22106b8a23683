"""What Invoke's parser lacks, by tasks that are only here."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from invoke.collection import Collection
from invoke.context import Context
from invoke.parser import Parser

from ugro_tasks.cli.collection import ns as shipped
from ugro_tasks.cli.command_line import UgroTask, as_called, calls, reading
from ugro_tasks.cli.task import task

ROOT = Path(__file__).parents[3]
INV = Path(sys.executable).with_name("inv")

# The words of commands to come; none of them is shipped.
TEST_TASKS = '''
from ugro_tasks.cli.task import task

@task(help={"names": "jobs", "priority": "p"}, words="names")
def queue(_context, names=None, priority="normal"):
    """Queue."""
    print("queue", names, priority)

@task(help={"name": "n", "param": "p", "json": "j"}, word="name", pairs=["param"])
def sweep(_context, name=None, param=None, json=False):
    """Sweep."""
    print("sweep", name, param, json)
'''
MOUNTED = """
import invoke
from invoke import Collection
from ugro_tasks.cli.collection import ns as ugro
{tests}

@invoke.task
def deploy(_context, to="here"):
    print("deploy", to)

ugro.add_task(queue)
ugro.add_task(sweep)
ns = Collection(deploy)
ns.add_collection(ugro, name="gpu")
"""
ALONE = """
{tests}
from invoke import Collection
ns = Collection(queue, sweep)
"""
OURS = """
{tests}
from ugro_tasks.cli.program import UgroProgram
from ugro_tasks.cli.collection import ns
ns.add_task(queue)
ns.add_task(sweep)
UgroProgram(ns).run()
"""

LINES: list[tuple[str, str]] = [
    ("queue", "queue None normal"),
    ("queue a", "queue ['a'] normal"),
    ("queue a b c", "queue ['a', 'b', 'c'] normal"),
    ("queue a --priority high b", "queue ['a', 'b'] high"),
    ("queue --priority=high a b", "queue ['a', 'b'] high"),
    ("queue --names a --names b", "queue ['a', 'b'] normal"),
    ("queue sweep b", "queue ['sweep', 'b'] normal"),
    ("sweep --param lr 1e-5,2e-5", "sweep None [('lr', '1e-5,2e-5')] False"),
    ("sweep --param lr -1,2e-5", "sweep None [('lr', '-1,2e-5')] False"),
    ("sweep --param lr=1e-5,2e-5", "sweep None [('lr', '1e-5,2e-5')] False"),
    ("sweep --param=lr=1e-5 s1", "sweep s1 [('lr', '1e-5')] False"),
    ("sweep --param lr 1e-5 s1 -j", "sweep s1 [('lr', '1e-5')] True"),
    (
        "sweep s1 --param lr 1 --param wd 0,1",
        "sweep s1 [('lr', '1'), ('wd', '0,1')] False",
    ),
    ("sweep -n s1 --param lr 1", "sweep s1 [('lr', '1')] False"),
]


def _run(argv: list[str | Path], folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        argv, cwd=folder, env={"PATH": "/usr/bin:/bin", "UGRO_CLUSTER": "local", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Three who have these tasks: somebody's collection, a tasks.py, and a program like `ugro`."""
    found = {}
    for name, text in (("mounted", MOUNTED), ("alone", ALONE), ("ours", OURS)):
        found[name] = tmp_path_factory.mktemp(name)
        (found[name] / "tasks.py").write_text(text.format(tests=TEST_TASKS))
    return found


@pytest.fixture(scope="module")
def offered() -> Collection:
    """The tasks that are only here, in this process."""
    found: dict[str, Any] = {}
    exec(TEST_TASKS, found)
    return Collection(found["queue"], found["sweep"])


@pytest.mark.parametrize(("line", "says"), LINES)
def test_a_line_is_parsed(
    line: str, says: str, offered: Collection, capsys: pytest.CaptureFixture[str]
) -> None:
    words = line.split()
    with reading("inv", words):
        parsed = Parser(offered.to_contexts()).parse_argv(words)
    for context in parsed:
        offered[context.name](Context(), **context.as_kwargs)
    assert capsys.readouterr().out.strip() == says


@pytest.mark.parametrize(("line", "says"), [LINES[2], LINES[11]])
def test_a_line_means_the_same_in_the_program_and_under_inv(
    line: str, says: str, folders: dict[str, Path]
) -> None:
    words = line.split()
    callers: list[tuple[list[str | Path], Path]] = [
        ([INV, f"gpu.{words[0]}", *words[1:]], folders["mounted"]),
        ([INV, *words], folders["alone"]),
        ([sys.executable, "tasks.py", *words], folders["ours"]),
    ]
    for argv, folder in callers:
        done = _run(argv, folder)
        assert (done.stdout.strip(), done.returncode) == (says, 0), done.stderr


def test_several_tasks_on_one_line_keep_their_words(folders: dict[str, Path]) -> None:
    done = _run(
        [
            INV,
            "deploy",
            "--to",
            "x",
            "gpu.queue",
            "a",
            "b",
            "gpu.sweep",
            "s1",
            "--param",
            "lr",
            "1",
        ],
        folders["mounted"],
    )
    assert done.stdout.splitlines() == [
        "deploy x",
        "queue ['a', 'b'] normal",
        "sweep s1 [('lr', '1')] False",
    ]


def test_a_flag_of_two_words_that_gets_one_is_refused(folders: dict[str, Path]) -> None:
    done = _run([sys.executable, "tasks.py", "sweep", "--param", "lr"], folders["ours"])
    assert done.returncode == 2
    assert "needed value" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("status", [[]]),
        ("status exp1", [["exp1"]]),
        ("status --cluster local exp1", [["exp1"]]),
        ("status -c local exp1", [["exp1"]]),
        ("status --cluster=local exp1 -j", [["exp1"]]),
        ("status status", [["status"]]),
        ("launch --name status status exp1", [[], ["exp1"]]),
        ("launch -n status", [[]]),
        ("-c tasks status exp1", [["exp1"]]),
        ("--config status.yaml status exp1", [["exp1"]]),
        ("clean a b status", [["a", "b"], []]),
        ("logs exp1 -f", [["exp1"]]),
        ("logs -f exp1", [["exp1"]]),
        ("test -- status exp1", []),
    ],
)  # fmt: skip
def test_the_words_of_each_task_are_found(line: str, words: list[list[str]]) -> None:
    assert shipped.task_names
    assert [
        call.words for call in calls(line.split()) if call.task.typed_name != "test"
    ] == words


def test_the_name_under_which_a_task_is_mounted_is_known() -> None:
    found = calls(["my.gpu.logs", "exp1", "--help"])
    assert [(call.prefix, call.words, call.help_asked) for call in found] == [
        ("my.gpu.", ["exp1"], True)
    ]


def test_a_message_names_tasks_as_they_were_called() -> None:
    message = "see: inv logs exp1, or inv --help logs; not inventory"
    assert as_called(message) == message
    with reading("ugro", []):
        assert (
            as_called(message)
            == "see: ugro logs exp1, or ugro --help logs; not inventory"
        )


def test_a_call_from_python_looks_at_no_command_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    @task(help={"name": "n"}, word="name")
    def shout(_context: Any, name: str | None = None) -> str | None:
        return name

    monkeypatch.setattr("sys.argv", ["inv", "shout", "from-the-line", "--help"])
    assert shout(Context()) is None
    assert shout(Context(), "exp1") == "exp1"
    assert shout(Context(), name="--help") == "--help"


def test_only_one_module_reads_the_command_line() -> None:
    modules = [
        *(ROOT / "ugro_tasks" / "cli").rglob("*.py"),
        *(ROOT / "dev").glob("*.py"),
        ROOT / "tasks.py",
    ]
    readers = [
        path.name
        for path in modules
        if re.search(r"sys\.argv|orig_argv", path.read_text("utf-8"))
    ]
    assert readers == ["command_line.py"]


def test_every_short_flag_is_chosen_and_none_is_the_helps() -> None:
    short = {
        (name, argument.names[0])
        for task_name in shipped.task_names
        for argument in shipped[task_name].arguments()
        for name in argument.names[1:]
    }
    assert dict(short) == {
        "n": "name", "c": "cluster", "e": "epochs", "v": "verbose", "q": "quiet", "j": "json", "f": "follow",
    }  # fmt: skip
    assert len(short) == 7


def test_asking_for_the_arguments_twice_gives_the_help_twice() -> None:
    logs = shipped["logs"]
    assert isinstance(logs, UgroTask)
    first, second = (
        {a.names[0]: a.help for a in logs.get_arguments()} for _ in range(2)
    )
    assert first == second
    assert all(first.values())


def test_a_copy_of_the_collection_parses_alike() -> None:
    """Invoke copies the collection that it loads."""
    import copy

    copied = Collection(*[copy.deepcopy(task) for task in shipped.tasks.values()])
    with reading("ugro", ["status", "exp1"]):
        found = Parser(copied.to_contexts()).parse_argv(["status", "exp1"])
    assert found[0].as_kwargs["name"] == "exp1"
