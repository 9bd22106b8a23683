"""The lab's hosts are there for every test that asks for them; and the Python that has torch."""

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest_plugins = ["lab.fixtures", "tests.hostile.profiles"]


def pytest_configure(config: pytest.Config) -> None:
    """Register our marker, and let SIGINT be heard, which tests send to this process and to those it starts.

    A shell script that runs pytest in the background has it ignored.
    """
    config.addinivalue_line("markers", "needs(program): only where it is on PATH")
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave out a test about a program that is not here."""
    for mark in item.iter_markers("needs"):
        [program] = mark.args
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not on PATH")


@pytest.fixture(scope="session")
def training_python() -> str:
    """An interpreter that has torch; where there is none, CI fails and a developer's run skips."""
    default = Path(__file__).resolve().parents[1] / ".ugro" / "env" / "bin" / "python"
    python = Path(os.environ.get("UGRO_TEST_PYTHON", default))
    if not python.exists():
        reason = f"no training environment: {python} is missing (name another: UGRO_TEST_PYTHON)"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return str(python)


@pytest.fixture(scope="session", autouse=True)
def secret_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Sign with a secret of the tests', not with that of whoever runs them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture(scope="session", autouse=True)
def the_machines_own_accounts() -> Iterator[None]:
    """Fail where a run as root has changed files that only the machine's owner changes."""
    files = [Path("/etc") / name for name in ("passwd", "group", "shadow", "sudoers")]
    files = [path for path in files if os.access(path, os.R_OK)]
    before = {path: path.read_bytes() for path in files}
    yield
    changed = [str(path) for path in files if path.read_bytes() != before[path]]
    assert not changed, f"a test has changed {', '.join(changed)}"
