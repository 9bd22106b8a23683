"""The training environment of this node, and the programs to make one with."""

from __future__ import annotations

import json
import os
import shutil
import sys
from typing import Dict, List, Optional

from .files import Json, expand, read_object
from .programs import run_later
from .protocol import Refusal
from .torch_facts import look_at_torch

# The file in an environment with its recipe's digest and its versions.
STAMP = "ugro-environment.json"
ACTIVATION_SECONDS = 60.0
TELL_VERSION = "import platform; print(platform.python_version())"
# A non-interactive login reads no profile, so these folders are mostly not on its PATH.
PLACES = {
    "pixi": ("$PIXI_HOME/bin", "~/.pixi/bin"),
    "pixi-pack": ("$PIXI_HOME/bin", "~/.pixi/bin", "~/.local/bin"),
    "pixi-unpack": ("$PIXI_HOME/bin", "~/.pixi/bin", "~/.local/bin"),
    "uv": ("~/.local/bin", "~/.cargo/bin"),
}


def environment(request: Json) -> Json:
    """Return the facts of `built`, and those about torch in it.

    With `offline`, also return the platform and the base Python, to fetch packages for elsewhere.
    """
    finish = look_at_torch(expand(request["interpreter"]))
    facts: Json = {"environment": built(request["environment"])}
    if request["offline"]:
        facts.update(machine=os.uname().machine, base=base_python(request["python"]))
    return dict(facts, torch=finish())


def built(place: Json) -> Json:
    """Return {there, stamp} of an environment, {} if it is not managed by UGRO.

    With pixi, also return {program, version, manifest, activate}.
    """
    if place["manager"] == "existing":
        return {}
    folder = expand(place["folder"])
    facts: Json = {
        "there": os.path.exists(os.path.join(folder, "bin", "python")),
        "stamp": stamp_of(folder),
    }
    if place["manager"] == "pixi":
        program = find_program("pixi")
        facts["program"] = program
        facts["version"] = version_of(program)
        facts["manifest"] = pixi_manifest(expand(place["workspace"]))
        facts["activate"] = activation_script(folder)
    return facts


def pixi_manifest(workspace: str) -> Optional[str]:
    """Return the path of pixi's manifest in a project, None without one."""
    for name in ("pixi.toml", "pyproject.toml"):
        path = os.path.join(workspace, name)
        if os.path.exists(path):
            return path
    return None


def activation_script(folder: str) -> Optional[str]:
    """Return the activation script of an environment unpacked from a pack, else None."""
    # A link leads to an unpacked environment; its script is beside it.
    if not os.path.islink(folder):
        return None
    parent = os.path.dirname(os.path.realpath(folder))
    script = os.path.join(parent, "activate.sh")
    return script if os.path.exists(script) else None


def stamp_of(folder: str) -> Optional[Json]:
    """Return the stamp of the environment in `folder`; None if it is incomplete or not UGRO's."""
    stamp = read_object(os.path.join(folder, STAMP))
    if stamp and "digest" in stamp:
        return stamp
    return None


def find_program(name: str) -> Optional[str]:
    """Return the path of a program, also in its installer's usual folders, else None."""
    folders = []
    for place in PLACES[name]:
        folders.append(os.path.expanduser(os.path.expandvars(place)))
    folders.append(os.environ.get("PATH", os.defpath))
    return shutil.which(name, path=os.pathsep.join(folders))


def version_of(program: Optional[str]) -> Optional[str]:
    """Return a program's version, as in `pixi 0.77.0`: the second word of its output."""
    if program is None:
        return None
    words = run_later([program, "--version"], 10.0)()["stdout"].split()
    return words[1] if len(words) > 1 else None


def base_python(wanted: Optional[str]) -> Json:
    """Return {path, version} of the Python to make an environment from; path None if there is none.

    `wanted` is a path, a version, or None for the Python running this program.
    """
    candidates = [wanted or sys.executable]
    wanted_version = ""
    if wanted and wanted[0].isdigit():
        wanted_version = wanted + "."
        minor = ".".join(wanted.split(".")[:2])
        candidates = ["python%s" % minor, sys.executable, "python3"]
    for candidate in candidates:
        path = shutil.which(expand(candidate))
        if path is None:
            continue
        answer = run_later([path, "-Ic", TELL_VERSION])()
        version = answer["stdout"].strip()
        # 3.11 fits 3.11.9, but 3.1 does not.
        fits = (version + ".").startswith(wanted_version)
        if version and fits:
            return {"path": path, "version": version}
    return {"path": None, "version": None}


def activated(argv: List[str]) -> Dict[str, str]:
    """Return the variables set by an activation, from a command that prints them like pixi.

    Its output is {"environment_variables": {...}}. Refuses with "not activated" for any other.
    """
    answer = run_later([expand(word) for word in argv], ACTIVATION_SECONDS)()
    try:
        variables = json.loads(answer["stdout"])["environment_variables"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        said = answer["stderr"] or answer["stdout"]
        lines = said.strip().splitlines() or ["nothing"]
        command = " ".join(argv[:2])
        words = "%s tells no activation: %s" % (command, lines[-1])
        raise Refusal("not activated", words) from None
    changed = {}
    for key, value in variables:
        if os.environ.get(key) != value:
            changed[key] = str(value)
    return changed
