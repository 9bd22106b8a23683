"""Programs run in the background."""

from __future__ import annotations

import subprocess
from typing import Callable, List

from .files import Json


def run_later(argv: List[str], limit_seconds: float = 20.0) -> Callable[[], Json]:
    """Start a program and return a function that waits for its result, {code, stdout, stderr}.

    `code` is None if the program is missing or takes longer than the limit.
    """
    try:
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=-1,
            stderr=-1,
            encoding="utf-8",
            errors="replace",
        )
    except OSError as error:
        missing = no_result("%s: %s" % (argv[0], error.strerror))
        return lambda: missing

    def finish() -> Json:
        try:
            out, err = process.communicate(timeout=limit_seconds)
        except subprocess.TimeoutExpired:
            # No wait after the kill: with a card off the bus, nvidia-smi cannot be killed.
            process.kill()
            for pipe in (process.stdout, process.stderr):
                if pipe:
                    pipe.close()
            return no_result("%s: no answer in %g s" % (argv[0], limit_seconds))
        return {"code": process.returncode, "stdout": out, "stderr": err[-2000:]}

    return finish


def no_result(words: str) -> Json:
    """Return the result of a program that did not run or did not end."""
    return {"code": None, "stdout": "", "stderr": words}
