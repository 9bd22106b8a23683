"""The training environment of this node: its stamp, its torch, and the programs to make one with.

Facts about torch come from the environment's own Python and are cached while they are valid.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from typing import Callable, Dict, List, Optional

from .files import Json, expand, read_json, state_folder, write_json
from .programs import run_later
from .protocol import Refusal

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
# For torch to start CUDA.
CUDA_SECONDS = 60.0
# Run by the training environment's own Python. It reads torch's version file, since importing torch
# takes 3 s.
LOOK_AT_TORCH = """
import importlib.util, json, os, platform, runpy
found = {"python": platform.python_version()}
spec = importlib.util.find_spec("torch")
if spec and spec.origin:
    path = os.path.join(os.path.dirname(spec.origin), "version.py")
    facts = runpy.run_path(path)
    found.update(torch=str(facts.get("__version__")), cuda=facts.get("cuda"))
    found["files"] = [path, os.path.dirname(os.path.dirname(spec.origin))]
print(json.dumps(found))
"""


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
    stamp = read_json(os.path.join(folder, STAMP))
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


def look_at_torch(interpreter: str) -> Callable[[], Json]:
    """Start LOOK_AT_TORCH and return a function giving its facts.

    They are cached until the interpreter, torch or the folder of packages change.
    """
    memory = os.path.join(state_folder(), "torch.json")
    known = recall(memory)
    cached = known.get("answer")
    if isinstance(cached, dict) and isinstance(cached.get("files"), list):
        stamps = stamps_of(interpreter, cached["files"])
        if known.get("stamps") == stamps:
            return lambda: cached
    finish = run_later([interpreter, "-c", LOOK_AT_TORCH])

    def look() -> Json:
        answer = finish()
        if answer["code"] == 0:
            output = answer["stdout"]
            try:
                answer.update(json.loads(output))
            except (ValueError, TypeError):
                words = "it says other things than it was asked: %r" % output[:200]
                return dict(answer, code=None, stderr=words)
        if answer.get("torch"):
            stamps = stamps_of(interpreter, answer["files"])
            remember(memory, {"answer": answer, "stamps": stamps})
        return answer

    return look


def stamps_of(interpreter: str, files: List[str]) -> List[object]:
    """Return the interpreter and its files' time stamps; they change with the environment."""
    stamps: List[object] = [interpreter]
    program = shutil.which(interpreter) or interpreter
    for path in [program, *files]:
        try:
            stamps.append(os.stat(path).st_mtime_ns)
        except OSError:
            stamps.append(None)
    return stamps


def cuda_available(interpreter: str, facts: Json) -> bool:
    """Return torch.cuda.is_available() of an environment.

    True is cached until torch, the cards, their visibility or the boot change.
    """
    # Index, name, uuid and driver; the other values change all the time.
    cards = [line.split(",")[:4] for line in facts["gpus"]["stdout"].splitlines()]
    stamps = stamps_of(interpreter, facts["torch"]["files"])
    key = json.dumps([stamps, cards, facts["visible_cards"], facts["boot_id"]])
    memory = os.path.join(state_folder(), "cuda_available.json")
    if recall(memory).get("key") == key:
        return True
    code = "import torch; print(torch.cuda.is_available())"
    answer = run_later([interpreter, "-c", code], CUDA_SECONDS)()
    available: bool = answer["stdout"].strip() == "True"
    if available:
        remember(memory, {"key": key})
    return available


def remember(path: str, value: Json) -> None:
    """Store facts for the next probe; on a full disk or in a read-only home they are not stored."""
    with contextlib.suppress(OSError):
        write_json(path, value)


def recall(path: str) -> Json:
    """Return the facts stored by `remember`; {} if there are none or the file is damaged."""
    return read_json(path) or {}
