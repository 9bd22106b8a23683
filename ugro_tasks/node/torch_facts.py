"""Facts about torch from the training environment's own Python, cached while they are valid."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from typing import Callable, List

from .files import Json, read_object, state_folder, write_json
from .programs import run_later

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
    return read_object(path) or {}
