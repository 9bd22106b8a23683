"""Exit codes are an interface: scripts branch on them."""

import inspect
import re

import pytest

from ugro_tasks import errors
from ugro_tasks.errors import (
    HostError,
    JobEnded,
    NodeFault,
    NotFit,
    SeveralErrors,
    UgroError,
)

STANDING_FOR_OTHERS = {JobEnded, SeveralErrors}
CLASSES = [
    kind
    for _, kind in inspect.getmembers(errors, inspect.isclass)
    if issubclass(kind, UgroError) and kind not in STANDING_FOR_OTHERS
]
ON_HOSTS = [kind for kind in CLASSES if issubclass(kind, HostError)]
DOCUMENTED = dict(re.findall(r"(\w+) +(\d+) {3}", errors.__doc__ or ""))


@pytest.mark.parametrize("kind", CLASSES)
def test_every_error_is_documented_with_its_exit_code(kind: type[UgroError]) -> None:
    assert DOCUMENTED[kind.__name__] == str(kind.exit_code)


def test_no_error_is_documented_that_does_not_exist() -> None:
    assert DOCUMENTED.keys() == {kind.__name__ for kind in CLASSES}


def test_no_two_errors_share_an_exit_code() -> None:
    assert len({kind.exit_code for kind in CLASSES}) == len(CLASSES)


@pytest.mark.parametrize("kind", CLASSES)
def test_exit_codes_are_free_for_a_program_to_use(kind: type[UgroError]) -> None:
    """0 is success; 126, 127 and 128+n belong to the shell, where 130 is the very Ctrl-C that it stands for."""
    assert 1 <= kind.exit_code < 126 or kind.exit_code == 130


@pytest.mark.parametrize(
    ("code", "ends_with"), [(7, 7), (25, 25), (130, 130), (0, 1), (-1, 1), (1000, 1)]
)
def test_a_job_that_ended_has_the_exit_code_of_its_record(
    code: int, ends_with: int
) -> None:
    error = JobEnded("what happened", code)
    assert (error.exit_code, error.text) == (ends_with, "what happened")


def test_several_errors_have_the_exit_code_of_all_of_them() -> None:
    fault, unfit = NodeFault("gpu1", "no"), NotFit("no")
    assert SeveralErrors([fault, fault], "both").exit_code == fault.exit_code
    assert SeveralErrors([fault, unfit], "both").exit_code == 1
    assert SeveralErrors([fault, unfit], "both", otherwise=10).exit_code == 10


@pytest.mark.parametrize("kind", ON_HOSTS)
def test_an_error_of_a_host_says_host_fault_and_remedy_in_that_order(
    kind: type[HostError],
) -> None:
    assert (
        kind("gpu1", "no answer", "is it on?").text == "gpu1: no answer\n    is it on?"
    )


def test_an_error_without_a_message_still_has_a_text() -> None:
    assert UgroError("").text == "UgroError"


def test_an_error_of_a_host_reads_the_same_in_a_log() -> None:
    assert str(HostError("gpu1", "no answer")) == "gpu1: no answer"
