"""The program, run in this process as a user would run it, with streams that are as strict as real ones."""

from __future__ import annotations

import io
import os
import re
from contextlib import chdir, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

from ugro_tasks.cli.program import UgroProgram

ROOT = Path(__file__).parents[2]

# What no terminal may get: control characters but tab and newline, what changes the direction of text, what cannot be
# encoded at all.
RAW = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)


class Done(NamedTuple):
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str


def ugro(*words: str, folder: Path) -> Done:
    """The command, in `folder`. Anything that would be a traceback there is raised here."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", "strict", write_through=True)
    err = io.TextIOWrapper(
        io.BytesIO(), "utf-8", "backslashreplace", write_through=True
    )
    code = 0
    with chdir(folder), redirect_stdout(out), redirect_stderr(err):
        try:
            UgroProgram().run(["ugro", *words])
        except SystemExit as end:
            code = int(end.code or 0)
    done = Done(code, _text(out), _text(err))
    assert not RAW.findall(done.out + done.err), done
    assert "Traceback" not in done.out + done.err, done
    return done


def _text(stream: io.TextIOWrapper) -> str:
    buffer = stream.buffer
    assert isinstance(buffer, io.BytesIO)
    return buffer.getvalue().decode()


def tree(folder: Path) -> dict[str, bytes | str | None]:
    """Everything that lies in a folder: contents of files, targets of links."""
    found: dict[str, bytes | str | None] = {}
    for path in sorted(folder.rglob("*")):
        name = os.fsdecode(path.relative_to(folder))
        found[name] = (
            str(path.readlink())
            if path.is_symlink()
            else path.read_bytes()
            if path.is_file()
            else None
        )
    return found
