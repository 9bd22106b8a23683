"""Modules are loaded while others are waited for."""

from __future__ import annotations

import subprocess
import sys


def test_a_module_is_there_after_the_wait() -> None:
    ask = (
        "import sys; from ugro_tasks.loading import loading\n"
        "with loading('text'): pass\n"
        "print('ugro_tasks.text' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", ask], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"
