"""Exit codes are an interface: scripts branch on them."""

import inspect
import re

import pytest

from ugro_tasks import errors
from ugro_tasks.errors import HostError, UgroError, by_exit_code

CLASSES = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, UgroError)]
ON_HOSTS = [kind for kind in CLASSES if issubclass(kind, HostError)]
OTHERS = [kind for kind in CLASSES if not issubclass(kind, HostError)]
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


@pytest.mark.parametrize("kind", OTHERS)
def test_an_exit_code_leads_back_to_its_error(kind: type[UgroError]) -> None:
    error = by_exit_code(kind.exit_code, "what happened")
    assert (type(error), error.code, error.text) == (kind, kind.exit_code, "what happened")


@pytest.mark.parametrize("kind", ON_HOSTS)
def test_the_exit_code_of_a_host_error_survives_the_record(kind: type[HostError]) -> None:
    error = by_exit_code(kind.exit_code, "gpu1: no answer")
    assert (error.code, error.text) == (kind.exit_code, "gpu1: no answer")


@pytest.mark.parametrize("code", [0, -1, 99, 1000])
def test_an_exit_code_of_no_error_is_an_error_all_the_same(code: int) -> None:
    assert by_exit_code(code, "x").code == 1


@pytest.mark.parametrize("kind", ON_HOSTS)
def test_an_error_of_a_host_says_host_fault_and_remedy_in_that_order(kind: type[HostError]) -> None:
    assert kind("gpu1", "no answer", "is it on?").text == "gpu1: no answer\n    is it on?"


def test_an_error_without_a_message_still_has_a_text() -> None:
    assert UgroError("").text == "UgroError"


def test_an_error_of_a_host_reads_the_same_in_a_log() -> None:
    assert str(HostError("gpu1", "no answer")) == "gpu1: no answer"
