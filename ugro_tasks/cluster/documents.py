"""The bytes of a file -> `Document`, and its faults -> the error with a line for each."""

import os
import pwd
import re
from collections.abc import Mapping
from pathlib import Path

from ..errors import ClusterFileError
from .values import shown
from .yaml_lines import Document, Fault, Loc

MAX_FAULTS_SHOWN = 50


def text_of(path: Path, content: bytes) -> str:
    """Decode the content of the file at `path`. Raises ClusterFileError if it is not UTF-8."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        byte = f"0x{content[error.start]:02x}"
        fault = Fault(line, f"byte {byte} is not UTF-8; save the file as UTF-8")
        raise refusal(path, [fault]) from error


def document_of(text: str, environ: Mapping[str, str]) -> Document:
    """Parse the text, with each `${NAME}` replaced from `environ`; faults are in the document."""
    return Document(text, lambda name, loc: _variable(name, loc, environ))


def refusal(path: Path, faults: list[Fault]) -> ClusterFileError:
    """Make the error listing the faults, each with its line."""
    count = "1 fault" if len(faults) == 1 else f"{len(faults)} faults"
    lines = [f"{path} cannot be used: {count}"]
    for line, text in faults[:MAX_FAULTS_SHOWN]:
        lines.append(f"  line {line}: {text}")
    more = len(faults) - MAX_FAULTS_SHOWN
    if more > 0:
        lines.append(f"  and {more} more")
    return ClusterFileError("\n".join(lines))


def _variable(name: str, loc: Loc, environ: Mapping[str, str]) -> str:
    """Return the value of `${name}` at a place of the file; raises ValueError if it has none."""
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        reference = shown("${" + name + "}")
        raise ValueError(f"{reference}: only ${{NAME}} is understood")
    in_a_node_section = loc[0] in ("nodes", "workers", "environment")
    in_the_master = loc[:2] == ("cluster", "master")
    if name == "HOME" and (in_a_node_section or in_the_master):
        raise ValueError("${HOME} is this machine's; for the home on the node write ~/")
    value = environ.get(name)
    # cron and containers do not set these two.
    if not value and name in ("USER", "LOGNAME"):
        value = pwd.getpwuid(os.getuid()).pw_name
    if not value:
        raise ValueError(
            f"${{{name}}} is not set here; `export {name}=...` or write the value out"
        )
    return value
