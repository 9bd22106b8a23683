"""Any text as a name, a flag or a job: the right exit code, one clear error, and nothing written anywhere."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.hostile.profiles import examples
from tests.hostile.running import Done, tree, ugro
from tests.hostile.strategies import arguments
from tests.unit.ended import EndedJob
from tests.unit.factories import make_scripts
from ugro_tasks.cluster.model import Cluster
from ugro_tasks.jobs.spec import NAME, JobSpec
from ugro_tasks.launch import submit
from ugro_tasks.launch.spec import draft

CLUSTER = """
cluster: {name: three, master: {name: gpu0, ip: 127.0.0.1, transport: local, paths: {project: %(root)s/node0}}}
workers:
  - {name: gpu1, ip: 127.0.0.1, transport: local, paths: {project: %(root)s/node1}}
  - {name: gpu2, ip: 127.0.0.1, transport: local, paths: {project: %(root)s/node2}}
environment: {manager: existing, python: %(python)s}
training: {default_script: train.py, default_model: tiny, default_dataset: text}
"""
SUBMITTED = 99
NOT_UNDERSTOOD = 2  # by the parser


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A project with a cluster of three nodes, a script, and one job that has ended. No launch gets past its check."""
    root = tmp_path_factory.mktemp("words")
    EndedJob(root, "exp1")
    make_scripts(root / "scripts")
    (root / "cluster.yaml").write_text(
        CLUSTER % {"root": root, "python": sys.executable}
    )

    def check_only(spec: JobSpec, cluster: Cluster) -> Any:
        record = draft(spec, cluster)
        assert NAME.fullmatch(record.name)
        raise SystemExit(SUBMITTED)

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("UGRO_CLUSTER", raising=False)
        patch.setattr(submit, "submit", check_only)
        yield root


def said(place: Path, *words: str) -> Done:
    """What a command comes to that must leave everything as it is."""
    before = tree(place)
    done = ugro(*words, folder=place)
    assert tree(place) == before
    if done.code not in {0, SUBMITTED}:
        assert done.err.strip()
        assert len(done.err) < 5_000 + 2 * sum(map(len, words))
    return done


def launch(place: Path, flag: str, value: str, *more: str) -> int:
    named = () if flag == "--name" else ("--name=n",)
    return said(place, "launch", *named, f"{flag}={value}", *more).code


def is_not_for_us(value: str, code: int) -> bool:
    """Invoke takes what begins with a dash for a flag, and an empty value for none or for the next word."""
    return (value[:1] in {"", "-"} and code == NOT_UNDERSTOOD) or (
        value == "" and code in {0, 2, SUBMITTED}
    )


def is_whole(least: int, most: float = float("inf")) -> Callable[[str], bool]:
    def check(value: str) -> bool:
        try:
            return least <= int(value) <= most
        except ValueError:
            return False

    return check


def is_rate(value: str) -> bool:
    try:
        return 0 < float(value) < 1000
    except ValueError:
        return False


def _travels(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return bool(value) and not value.startswith("-")


FLAGS: dict[str, Callable[[str], bool]] = {
    "--name": lambda value: bool(NAME.fullmatch(value)),
    "--epochs": is_whole(1, 1_000_000),
    "--lr": is_rate,
    "--max-restarts": is_whole(0),
    "--min-nodes": is_whole(1, 3),
    "--nodes": lambda value: (
        set(words := [word.strip() for word in value.split(",")])
        <= {"gpu0", "gpu1", "gpu2"}
        and len(words) == len(set(words))
    ),
    "--script": lambda value: value == "train.py",
    "--model": _travels,
    "--dataset": _travels,
}
NUMBERS = [
    "0",
    "1",
    "-1",
    "+1",
    "1_0",
    "1e3",
    "1.0",
    " 1 ",
    "\u0661",
    "²",
    "0x1",
    "",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "1e-400",
    "9" * 30,
    "9" * 5000,
    "1" * 4300,
    "0.1",
    "1,5",
    "1;2",
    "NaN",
    "0" * 5000 + "1",
]
NAMES = [
    "exp1",
    "gpu0",
    "gpu0,gpu1",
    "gpu0,,gpu1",
    "gpu0,gpu0",
    " gpu0",
    "train.py",
    "./train.py",
    "../train.py",
    "a" * 65,
]


@examples(40)
@given(
    flag=st.sampled_from(sorted(FLAGS)),
    value=arguments | st.sampled_from(NUMBERS + NAMES),
)
@example(flag="--max-restarts", value="9" * 4000)
@example(flag="--script", value="train.py/../train.py")
@example(flag="--script", value="train.py\n")
@example(flag="--name", value="n\n")
@example(flag="--name", value="é")
def test_a_flag_of_launch_is_taken_or_refused(
    place: Path, flag: str, value: str
) -> None:
    code = launch(place, flag, value)
    assert code == (SUBMITTED if FLAGS[flag](value) else 2) or is_not_for_us(
        value, code
    )


@examples(20)
@given(value=arguments)
@example(value="'open")
@example(value="a\\")
@example(value="-- --x 'a b' $(id) `id` \udcff")
def test_any_args_are_taken_or_refused(place: Path, value: str) -> None:
    assert launch(place, "--args", value) in {SUBMITTED, 2, NOT_UNDERSTOOD}


@examples(20)
@given(
    values=st.lists(
        arguments
        | st.sampled_from(
            ["A=1", "A=", "=1", "UGRO_TOKEN=x", "RANK=1", "é=1", "A=\udcff"]
        ),
        min_size=1,
        max_size=3,
    )
)
@example(values=["LD_PRELOAD=/tmp/x.so", "A\n=1"])
def test_any_env_is_taken_or_refused(place: Path, values: list[str]) -> None:
    code = said(
        place, "launch", "--name=n", *(f"--env={value}" for value in values)
    ).code
    pairs = dict(value.partition("=")[::2] for value in values)
    good = all("=" in value for value in values) and all(
        re.fullmatch("[A-Za-z_][A-Za-z0-9_]*", name)
        and not re.match("PET_|TORCHELASTIC_|TORCH_ELASTIC_|UGRO_|RANK$", name)
        and _travels(f"x{value}")
        for name, value in pairs.items()
    )
    assert code == (SUBMITTED if good else 2) or any(
        is_not_for_us(value, code) for value in values
    )


SETTINGS = [
    "training.seed",
    "training.learning_rate",
    "lora.target_modules",
    "model.name",
    "dataset.config",
    "training",
]
SETTINGS += [
    "training.batch_size_per_gpu",
    "nothing.here",
    "training.save_strategy",
    "lora.enabled",
    "optimizer.betas",
]
VALUES = [
    "1",
    "true",
    "no",
    "[a, b]",
    "[]",
    "{a: 1}",
    "!!bool x",
    "!!int ''",
    "!!float ''",
    "!!timestamp x",
    "!!binary '?'",
    "!!set {a}",
    "!!python/object/apply:os.system [id]",
    "&a [*a]",
    "*a",
    "2001-99-99",
    "<<: 3",
    "{<<: 3}",
    "? a",
    "1:1:1:1",
    "a: b: c",
    "---\n---",
    "%X",
    "[" * 100_000,
    "{a: " * 50_000,
    "'",
    '"\\',
    "!!merge x",
    "!!omap [1]",
    "!!pairs [1]",
    "=",
    "\udcff",
    "9" * 5000,
    "1e999",
    ".nan",
    "{[]: 1}",
    "{{}: 1}",
    "!!str",
    "!!null x",
    "!",
    "!<x> a",
    "0o9",
    "0b2",
    "0x",
    "-",
    "_",
    "1_",
]


@examples(40)
@given(
    key=st.sampled_from(SETTINGS) | arguments,
    value=arguments | st.sampled_from(VALUES),
    equals=st.sampled_from("==== "),
)
def test_any_setting_is_taken_or_refused(
    place: Path, key: str, value: str, equals: str
) -> None:
    assert launch(place, "--set", f"{key}{equals}{value}") in {
        SUBMITTED,
        2,
        NOT_UNDERSTOOD,
    }


@pytest.mark.parametrize("key", ["dataset.config", "training.batch_size_per_gpu"])
@pytest.mark.parametrize("value", VALUES, ids=range(len(VALUES)))
def test_yaml_in_a_setting_is_taken_or_refused(
    place: Path, key: str, value: str
) -> None:
    assert launch(place, "--set", f"{key}={value}") in {SUBMITTED, 2}


OF_A_JOB = {
    "status": ["status", "--name={}"],
    "logs": ["logs", "--name={}"],
    "results": ["results", "--name={}"],
    "attach": ["attach", "--name={}"],
    "stop": ["stop", "--name={}"],
    "gather": ["gather", "--name={}"],
    "clean": ["clean", "--dry-run", "--name={}"],
    "resume": ["launch", "--resume={}"],
}


@examples(12)
@given(words=st.sampled_from(sorted(OF_A_JOB)), name=arguments)
@example(words="clean", name=",")
@example(words="clean", name="\udcff")
@example(words="status", name="exp1_99999999_999999")
@example(words="logs", name="../exp1")
@example(words="results", name="*")
def test_a_job_that_is_none_is_not_found(place: Path, words: str, name: str) -> None:
    done = said(
        place,
        *(word.format(name) if "{}" in word else word for word in OF_A_JOB[words]),
    )
    # Without a name, status and clean are about all jobs, and a launch goes on from none.
    assert done.code in ({4} if name else {0, 1, 2, 4})


@examples(20)
@given(
    flag=st.sampled_from(["--rank", "--lines"]),
    value=arguments | st.sampled_from(NUMBERS),
)
def test_logs_take_a_number_or_refuse(place: Path, flag: str, value: str) -> None:
    code = said(place, "logs", "--name=exp1", f"{flag}={value}").code
    good = is_whole(0, 2 if flag == "--rank" else float("inf"))(value)
    assert code == (0 if good else 2) or is_not_for_us(value, code)


@examples(20)
@given(
    flag=st.sampled_from(["--older-than", "--keep-last"]),
    value=arguments | st.sampled_from([*NUMBERS, "1d", "٣d", "9" * 400 + "w"]),
)
def test_clean_takes_an_age_and_a_number_or_refuses(
    place: Path, flag: str, value: str
) -> None:
    code = said(place, "clean", "--dry-run", f"{flag}={value}", "--name=exp1").code
    good = (
        re.fullmatch("[0-9]+[hdw]", value)
        if flag == "--older-than"
        else is_whole(0)(value)
    )
    assert code == (0 if good else 2) or is_not_for_us(value, code)


@examples(20)
@given(
    task=st.sampled_from(["status", "health", "launch", "reset", "init", "sync-envs"]),
    value=arguments,
)
@example(task="status", value="x" * 5000)
@example(task="status", value="/")
@example(task="status", value="/dev/null")
@example(task="status", value="~nosuchuser/cluster.yaml")
@example(task="status", value="clusters")
def test_a_cluster_that_is_none_is_refused(place: Path, task: str, value: str) -> None:
    more = ["--name=n"] if task == "launch" else []
    assert said(place, task, f"--cluster={value}", *more).code in (
        {3} if value else {0, 1, 3, SUBMITTED}
    )


@examples(12)
@given(value=arguments)
@example(value="~nosuchuser/loss.png")
@example(value="loss.PNG")
@example(value="/nonexistent/loss.png")
@example(value="/dev/full/loss.svg")
def test_a_plot_goes_into_a_picture_or_nowhere(place: Path, value: str) -> None:
    assert said(place, "results", "--name=exp1", f"--plot={value}").code in (
        {2, 12} if value else {0, 1, 2}
    )


@examples(20)
@given(words=st.lists(arguments, max_size=4))
def test_any_words_at_all_are_understood_or_refused(
    place: Path, words: list[str]
) -> None:
    allowed = [word for word in words if word not in {"test", "check", "init"}]
    code = said(place, *allowed).code
    assert code in ({0, 1, 2, 3, 4} if allowed else {0, 1})
