"""What a user may ask for."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.factories import make_cluster, make_record, make_spec
from ugro_tasks.errors import UsageError
from ugro_tasks.jobs.phase import Phase
from ugro_tasks.jobs.spec import JobSpec
from ugro_tasks.jobs.state import JobState


def refusal(**changes: Any) -> str:
    with pytest.raises(UsageError) as refused:
        make_spec(**changes).checked()
    assert refused.value.exit_code == 2
    return refused.value.text


@pytest.mark.parametrize(
    "name", ["exp1", "a", "7", "Exp.1_b-2", "a" * 64, "exp1_20260120_120000"]
)
def test_an_ordinary_name_is_taken(name: str) -> None:
    spec = make_spec(name=name)
    assert spec.checked() is spec


@pytest.mark.parametrize(
    "name",
    [
        "", ".", "..", "../up", "a/b", "/etc", ".hidden", "-rf", "--help", "_x", "a b", "a;b", "$(id)", "`id`",
        "a\n", "a\0", "a\x1b[31m", "é", "\uff11", "a" * 65, "~", "a*", "a\\b",
    ],
)  # fmt: skip
def test_a_name_that_could_be_a_path_or_a_command_is_refused(name: str) -> None:
    assert refusal(name=name).startswith("--name ")


@given(st.text())
def test_a_name_that_is_taken_is_one_harmless_word(name: str) -> None:
    try:
        make_spec(name=name).checked()
    except UsageError:
        return
    assert name.isascii()
    assert name[0].isalnum()
    assert name.replace(".", "").replace("_", "").replace("-", "").isalnum()


@given(st.text())
def test_a_refusal_shows_a_name_without_its_control_characters(name: str) -> None:
    try:
        make_spec(name=name).checked()
    except UsageError as refused:
        shown = refused.text
    else:
        shown = ""
    assert all(character.isprintable() for character in shown)


@pytest.mark.parametrize("script", ["train.py", "a/b/train.py", "a-b.c/train_2.py"])
def test_a_script_in_the_scripts_folder_is_taken(script: str) -> None:
    make_spec(script=script).checked()


@pytest.mark.parametrize(
    "script",
    [
        "", ".py", "train", "train.sh", "/etc/train.py", "../train.py", "a/../../train.py", "a/..", "~/train.py",
        "-c.py", "--x.py", "a b.py", "a;b.py", "train.py\n", "train.py\0", "a\\b.py", "./train.py",
    ],
)  # fmt: skip
def test_a_script_elsewhere_is_refused(script: str) -> None:
    assert refusal(script=script).startswith("--script ")


@pytest.mark.parametrize(
    ("change", "flag"),
    [
        ({"env": {"": "x"}}, "--env ''"),
        ({"env": {"A-B": "x"}}, "--env 'A-B'"),
        ({"env": {"1A": "x"}}, "--env '1A'"),
        ({"env": {"A=B": "x"}}, "--env 'A=B'"),
        ({"env": {"A\n": "x"}}, "--env 'A\\n'"),
        ({"env": {"Ä": "x"}}, "--env 'Ä'"),
        ({"env": {"A": "x\0"}}, "NUL"),
        ({"args": ("x", "\0")}, "NUL"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(
    change: dict[str, Any], flag: str
) -> None:
    assert flag in refusal(**change)


@pytest.mark.parametrize("field", ["model", "dataset"])
@pytest.mark.parametrize("value", ["a\0b", "caf\udce9"], ids=["NUL", "not UTF-8"])
def test_a_word_that_cannot_travel_is_refused(field: str, value: str) -> None:
    assert repr(value) in refusal(**{field: value})


@pytest.mark.parametrize(
    "change",
    [{"args": ("caf\udce9",)}, {"env": {"A": "caf\udce9"}}],
    ids=["args", "env"],
)
def test_bytes_that_are_no_text_are_refused_and_not_a_crash_later(
    change: dict[str, Any],
) -> None:
    refusal(**change)


def test_all_faults_are_told_at_once() -> None:
    told = refusal(name="../x", script="x", model="\0", env={"-": ""})
    assert [line.split()[0] for line in told.splitlines()] == [
        "--name", "--script", "--env", "--model",
    ]  # fmt: skip


@pytest.mark.parametrize("word", ["; rm -rf ~", "$(id)", "-x", "a b", "\n", "ü"])
def test_arguments_and_variables_may_hold_any_text(word: str) -> None:
    make_spec(args=(word,), env={"A": word}).checked()


def test_a_record_is_its_spec_and_more(tmp_path: Any) -> None:
    spec = make_spec(args=("-x",), env={"A": "b"}, force=True)
    record = make_record(make_cluster(tmp_path), **msgspec.structs.asdict(spec))
    assert isinstance(record, JobSpec)
    for name, value in msgspec.structs.asdict(spec).items():
        assert getattr(record, name) == value


@pytest.mark.parametrize("phase", list(Phase))
def test_a_state_survives_its_file(phase: Phase) -> None:
    state = JobState(phase=phase, started_at=1.5, exit_code=7)
    assert msgspec.json.decode(msgspec.json.encode(state), type=JobState) == state


def test_a_job_lasts_from_its_start_to_its_end() -> None:
    assert JobState(phase=Phase.FAILED, started_at=10.0, ended_at=12.5).seconds == 2.5


def test_a_job_that_never_ran_has_no_duration() -> None:
    assert JobState(phase=Phase.REFUSED, ended_at=12.5).seconds is None
