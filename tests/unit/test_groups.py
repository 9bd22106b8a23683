"""The groups of tests: which files each has, which run when, what is drawn of them, and what is said of them."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dev.groups import (
    ALL_MINUTES,
    DEFAULT_MINUTES,
    GROUPS,
    Group,
    choose,
    draw,
    files_of,
    group_of,
)
from dev.report import show_groups, show_results
from dev.running import (
    NO_TESTS,
    Result,
    commit_of,
    files_with_tests,
    names_tests,
    run_named,
)
from dev.set_up import packages_of, requirements_of
from ugro_tasks.errors import UsageError

ROOT = Path(__file__).parents[2]
TESTS = [f"tests/x/test_x.py::test[{number}]" for number in range(50)]
COMMITS = [f"{number:040x}" for number in range(400)]

FAST = Group(name="fast", about="", paths=("tests/unit",), minutes=1, by_default=True)
SLOW = Group(
    name="slow",
    about="",
    paths=("tests/unit/test_slow.py", "tests/far"),
    minutes=9,
    drawn=3,
)


def result(name: str = "fast", code: int = 0, **counts: Any) -> Result:
    return Result(name=name, seconds=61.0, code=code, minutes=1, **counts)


@pytest.mark.parametrize("file", files_with_tests())
def test_every_file_of_tests_belongs_to_a_group(file: str) -> None:
    assert group_of(file) is not None


def test_no_file_is_in_two_groups_or_in_none() -> None:
    files = files_with_tests()
    assert sorted(
        file for group in GROUPS for file in files_of(group, files)
    ) == sorted(files)


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_a_group_has_files_and_each_of_its_paths_exists(group: Group) -> None:
    assert files_of(group, files_with_tests())
    assert [path for path in group.paths if not (ROOT / path).exists()] == []


def test_a_file_belongs_to_the_group_that_names_it_most_closely() -> None:
    files = [
        "tests/unit/test_slow.py",
        "tests/unit/test_slower.py",
        "tests/far/a/test_a.py",
    ]
    assert files_of(SLOW, files, [FAST, SLOW]) == [
        "tests/far/a/test_a.py",
        "tests/unit/test_slow.py",
    ]
    assert files_of(FAST, files, [FAST, SLOW]) == ["tests/unit/test_slower.py"]
    assert group_of("tests/nowhere/test_x.py", [FAST, SLOW]) is None


def test_names_are_unique_and_the_groups_keep_to_the_time_that_there_is() -> None:
    assert len({group.name for group in GROUPS}) == len(GROUPS)
    assert sum(group.minutes for group in GROUPS if group.by_default) <= DEFAULT_MINUTES
    assert sum(group.minutes for group in GROUPS) < ALL_MINUTES


@pytest.mark.parametrize(
    ("names", "everything", "chosen"),
    [
        ([], False, [FAST]),
        ([], True, [FAST, SLOW]),
        (["slow"], False, [SLOW]),
        (["slow, fast", "slow"], False, [SLOW, FAST]),
    ],
)
def test_groups_are_chosen_by_name_or_by_default(
    names: list[str], everything: bool, chosen: list[Group]
) -> None:
    assert choose(names, everything, [FAST, SLOW]) == chosen


def test_an_unknown_group_is_one_error_with_the_nearest_name() -> None:
    with pytest.raises(
        UsageError,
        match=r"^--group fsat: .* Did you mean fast\? There are: fast, slow$",
    ):
        choose(["slow,fsat"], False, [FAST, SLOW])


def test_all_and_a_name_at_once_are_refused() -> None:
    with pytest.raises(UsageError, match="Leave out --all or --group"):
        choose(["slow"], True, [FAST, SLOW])


def test_a_commit_draws_the_same_tests_in_whatever_order_they_come() -> None:
    for commit in COMMITS[:20]:
        drawn = draw(TESTS, commit, 7)
        assert len(drawn) == 7
        assert draw(TESTS[::-1], commit, 7) == drawn


def test_over_many_commits_each_test_has_its_turn() -> None:
    turns = {
        test: sum(test in draw(TESTS, commit, 5) for commit in COMMITS)
        for test in TESTS
    }
    assert min(turns.values()) > 15  # 40 on the mean
    assert max(turns.values()) < 80


def test_of_fewer_tests_than_are_drawn_all_run() -> None:
    assert draw(TESTS[:3], COMMITS[0], 5) == set(TESTS[:3])


def test_what_groups_need_of_this_machine_is_looked_up() -> None:
    programs = {"sh": "dash", "no-such-program": "one two"}
    needy = Group(
        name="needy",
        about="",
        paths=(),
        minutes=1,
        programs=programs,
        requirements="extra.txt",
    )
    assert packages_of([FAST, needy]) == ["one", "two"]
    assert requirements_of([FAST, needy, needy]) == ["extra.txt"]


@pytest.mark.parametrize("group", GROUPS, ids=lambda group: group.name)
def test_the_requirements_of_a_group_are_there(group: Group) -> None:
    assert (
        not group.requirements or (ROOT / "requirements" / group.requirements).is_file()
    )


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["-k", "health"], False),
        (["-x", "--ignore=tests/unit"], False),
        (["tests/unit/test_job.py::test_x"], True),
        (["-q", "tests"], True),
        (["./tests/hosts"], True),
    ],
)
def test_arguments_that_name_tests_are_told_from_those_that_pick(
    arguments: list[str], named: bool
) -> None:
    assert names_tests(arguments) == named


@pytest.mark.needs("git")
def test_a_commit_that_is_none_is_refused() -> None:
    with pytest.raises(
        UsageError, match="--part no-such-branch: git finds no such commit"
    ):
        commit_of("no-such-branch")


@pytest.mark.needs("git")
def test_the_commit_of_a_part_is_a_whole_hash() -> None:
    assert commit_of("HEAD") == commit_of("HEAD^{commit}")
    assert commit_of(COMMITS[3]) == COMMITS[3]  # of a clone that lacks it


def test_the_report_ends_with_the_sum(capsys: pytest.CaptureFixture[str]) -> None:
    assert show_results(
        [result(passed=7), result("slow", passed=3, left_out={"no such tool": 2})],
        [],
        2.5,
    )
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2:] == ["left out: 2 tests: no such tool", "10 passed, 0 failed"]
    assert [line.split()[0] for line in lines[1:5]] == [
        "group",
        "set-up",
        "fast",
        "slow",
    ]
    assert lines[3].split() == [
        "fast",
        "all",
        "7",
        "0",
        "0",
        "1:01",
        "1",
        "min,",
        "exceeded",
    ]


@pytest.mark.parametrize(
    ("results", "not_run", "says"),
    [
        (
            [result(passed=7, failed=2, code=1)],
            [],
            "not well: fast (pytest's exit code 1)",
        ),
        ([result(code=3)], [], "not well: fast (pytest's exit code 3)"),
        ([result(code=NO_TESTS)], [], "not well: no test was selected"),
        ([result(passed=1)], ["slow"], "slow    not run"),
        (
            [result(passed=1, left_behind=("pip-7", "torchelastic_x"))],
            [],
            "not well: fast (left behind among the temporary files: pip-7, torchelastic_x)",
        ),
    ],
)
def test_what_is_not_well_is_said(
    results: list[Result],
    not_run: list[str],
    says: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert not show_results(results, not_run, 0.1)
    assert says in capsys.readouterr().out


def test_a_group_without_the_test_that_was_asked_for_does_no_harm() -> None:
    assert show_results([result(passed=1), result("slow", code=NO_TESTS)], [], 0.1)


def test_the_list_of_groups_says_how_the_whole_of_a_slow_one_runs(
    capsys: pytest.CaptureFixture[str],
) -> None:
    show_groups([FAST, SLOW])
    assert "test --all, 3 of them; all by --group slow" in capsys.readouterr().out


@pytest.mark.parametrize("workers", ["0", "2"])
def test_only_the_drawn_tests_run_and_are_counted(workers: str, tmp_path: Path) -> None:
    file = tmp_path / "test_ten.py"
    file.write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('number', range(10))\n"
        "def test_one(number): assert number != 7\n"
        "def test_two(): pytest.skip('no such tool')\n"
    )
    tally = tmp_path / "tally.json"
    plugins = [
        "-p",
        "xdist",
        "-p",
        "dev.pytest_group",
        "--noconftest",
        "-c",
        os.devnull,
        "-n",
        workers,
    ]

    def counts(*arguments: str) -> dict[str, Any]:
        subprocess.run(
            [sys.executable, "-m", "pytest", *plugins, "--tally", str(tally), *arguments, str(file)],
            cwd=ROOT, env=os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
            capture_output=True, check=False,
        )  # fmt: skip
        found: dict[str, Any] = json.loads(tally.read_text())
        return found

    assert counts() == {"passed": 9, "failed": 1, "left_out": {"no such tool": 1}}
    drawn = counts("--drawn", f"{COMMITS[5]}:4")
    assert drawn["passed"] + drawn["failed"] + sum(drawn["left_out"].values()) == 4


def test_a_group_that_leaves_a_temporary_file_is_not_well(tmp_path: Path) -> None:
    (tmp_path / "test_leaks.py").write_text(
        "import tempfile\n"
        "def test_keeps(): tempfile.mkstemp(prefix='kept-')\n"
        "def test_cleans(tmp_path): (tmp_path / 'own').touch()\n"
    )
    [found] = run_named([str(tmp_path / "test_leaks.py"), "-p", "no:cacheprovider"])
    assert found.code == 0
    assert [name[:5] for name in found.left_behind] == ["kept-"]
    assert not found.good


def test_the_unit_tests_run_in_an_order_that_a_seed_repeats() -> None:
    def order(*arguments: str) -> list[str]:
        argv = [
            sys.executable,
            "-m",
            "pytest",
            "--collect-only",
            "-q",
            *arguments,
            "tests/unit/test_groups.py",
        ]
        done = subprocess.run(
            argv, cwd=ROOT, capture_output=True, text=True, check=True
        )
        return [line for line in done.stdout.splitlines() if "::" in line]

    [unit] = [group for group in GROUPS if group.name == "unit"]
    first = order(*unit.arguments, "--randomly-seed=1")
    assert order(*unit.arguments, "--randomly-seed=1") == first
    assert order(*unit.arguments, "--randomly-seed=2") != first
    assert sorted(order()) == sorted(first)
    assert not any(
        "randomly" in argument
        for group in GROUPS
        if group is not unit
        for argument in group.arguments
    )


def test_the_checkout_has_the_developers_tasks_and_the_package_has_not(
    tmp_path: Path,
) -> None:
    """Asked of `inv`, as bin/ugro asks it, from another folder."""
    inv = Path(sys.executable).with_name("inv")
    done = subprocess.run(
        [inv, "--search-root", ROOT, "test", "--groups"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [line.split()[0] for line in done.stdout.splitlines()[1:]] == [
        group.name for group in GROUPS
    ]
    ask = "from ugro_tasks.cli.collection import ns; print({'check', 'test', 'chaos', 'simulate'} & set(ns.task_names))"
    done = subprocess.run(
        [sys.executable, "-c", ask],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "set()\n"
