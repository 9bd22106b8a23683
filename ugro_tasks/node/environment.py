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
        facts["program"] = find_program("pixi")
        facts["version"] = version_of(facts["program"])
        manifests = [
            os.path.join(expand(place["workspace"]), name)
            for name in ("pixi.toml", "pyproject.toml")
        ]
        facts["manifest"] = next(
            (path for path in manifests if os.path.exists(path)), None
        )
        activate = os.path.join(
            os.path.dirname(os.path.realpath(folder)), "activate.sh"
        )
        facts["activate"] = (
            activate if os.path.islink(folder) and os.path.exists(activate) else None
        )
    return facts


def stamp_of(folder: str) -> Optional[Json]:
    """Return the stamp of the environment in `folder`; None if it is incomplete or not UGRO's."""
    stamp = read_object(os.path.join(folder, STAMP))
    return stamp if stamp and "digest" in stamp else None


def find_program(name: str) -> Optional[str]:
    """Return the path of a program, also in its installer's usual folders, else None."""
    places = [os.path.expanduser(os.path.expandvars(place)) for place in PLACES[name]]
    return shutil.which(
        name, path=os.pathsep.join([*places, os.environ.get("PATH", os.defpath)])
    )


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
    if wanted and wanted[0].isdigit():
        candidates = [
            "python%s" % ".".join(wanted.split(".")[:2]),
            sys.executable,
            "python3",
        ]
    for candidate in candidates:
        path = shutil.which(expand(candidate))
        version = (
            path
            and run_later(
                [path, "-Ic", "import platform; print(platform.python_version())"]
            )()["stdout"]
        )
        if version and (
            not wanted
            or not wanted[0].isdigit()
            or (version.strip() + ".").startswith(wanted + ".")
        ):
            return {"path": path, "version": version.strip()}
    return {"path": None, "version": None}


def activated(argv: List[str]) -> Dict[str, str]:
    """Return the variables set by an activation, from a command that prints them like pixi.

    Its output is {"environment_variables": {...}}. Refuses with "not activated" for any other.
    """
    answer = run_later([expand(word) for word in argv], ACTIVATION_SECONDS)()
    try:
        variables = json.loads(answer["stdout"])["environment_variables"].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        said = (answer["stderr"] or answer["stdout"]).strip().splitlines()[-1:] or [
            "nothing"
        ]
        raise Refusal(
            "not activated",
            "%s tells no activation: %s" % (" ".join(argv[:2]), said[0]),
        ) from None
    return {key: str(value) for key, value in variables if os.environ.get(key) != value}
