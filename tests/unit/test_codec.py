"""Many threads may decode a type at once, also where none has done so before."""

import subprocess
import sys

import pytest

# In a process of its own: it may end by a segmentation fault, and only the first use of a type shows it.
PROGRAM = """
import sys, threading
from tests.hostile.nodes import WHOLE
from ugro_tasks.hosts import answers
at_once = threading.Barrier(24)
def decode():
    at_once.wait()
    answers.checked("probe", WHOLE["probe"])
sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=decode) for _ in range(24)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
"""


@pytest.mark.parametrize("_", range(5))
def test_threads_that_begin_together_decode(_: int) -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
