"""Removal of finished jobs' folders; folders of living jobs and of other users stay."""

from __future__ import annotations

import os
import shutil
import stat
from typing import Optional, Set, Tuple

from .files import Json, expand, read_json
from .processes import (
    ATTEMPT_NAME,
    attempt_of,
    job_part,
    processes,
    supervisor_of,
)
from .streams import stream_sizes
from .tree import stats_in

OTHERS_TOLD = 1000


def clean(request: Json) -> Json:
    """Inspect job folders, and remove them if `remove` is true: {folders, others}.

    `folders` of the request are [project, name]; only direct children of a project's `jobs` are
    ever removed. The answer's `folders` are {name: {path, bytes, removed, kept, streams}} of each
    existing folder. `kept` is the reason to keep a folder. `bytes` is its size on the disk, with
    each file counted once, `streams` are {file of a stream: its bytes}. `others` are the names of
    job folders beside them that were not asked about.
    """
    alive = {job_part(attempt_of(one.token)) for one in processes(lambda _: True)}
    counted: Set[Tuple[int, int]] = set()
    asked: Set[str] = set()
    projects: Set[str] = set()
    found: Json = {}
    for project, name in request["folders"]:
        asked.add(name)
        projects.add(project)
        path = os.path.join(expand(project), "jobs", name)
        if not ATTEMPT_NAME.fullmatch(name) or not os.path.lexists(path):
            continue
        try:
            kept = reason_to_keep(path, name, alive)
            streams = stream_sizes(path)
        except (OSError, ValueError) as error:
            # It vanished at this moment, or its records are damaged.
            kept = "it cannot be looked into: %s" % error
            streams = {}
        found[name] = {
            "path": path,
            "bytes": disk_bytes(path, counted),
            "removed": False,
            "kept": kept,
            "streams": streams,
        }
    if request["remove"]:
        for facts in found.values():
            if not facts["kept"]:
                facts["kept"] = remove(facts["path"])
                facts["removed"] = facts["kept"] is None
    present: Set[str] = set()
    for project in projects:
        present.update(jobs_in(project))
    others = sorted(present - asked)
    return {"folders": found, "others": others[:OTHERS_TOLD]}


def reason_to_keep(path: str, name: str, alive: Set[str]) -> Optional[str]:
    """Return the reason to keep a folder, None if it may be removed."""
    facts = os.lstat(path)
    if not stat.S_ISDIR(facts.st_mode):
        return "it is a link or a file, not the folder of a job"
    if facts.st_uid != os.getuid():
        return "it belongs to another user"
    plan_path = os.path.join(path, "plan.json")
    plan = read_json(plan_path)
    if plan is None and os.path.lexists(plan_path):
        return "its plan cannot be read"
    if plan:
        attempt, _, rest = str(plan.get("token")).partition(":")
        node = rest.partition(":")[0]
        if name not in (attempt, "%s.%s" % (attempt, node)):
            return "its plan is that of another job"
    if supervisor_of(path) or job_part(name) in alive:
        return "something of the job lives there"
    return None


def disk_bytes(path: str, counted: "Set[Tuple[int, int]]") -> int:
    """Return a folder's size on the disk; hard-linked files already in `counted` count as 0."""
    total = 0
    for facts in stats_in(path):
        if facts.st_nlink > 1 and not stat.S_ISDIR(facts.st_mode):
            file = (facts.st_dev, facts.st_ino)
            if file in counted:
                continue
            counted.add(file)
        total += facts.st_blocks * 512
    return total


def remove(path: str) -> Optional[str]:
    """Remove a folder without following links; return None, or the reason of a failure."""
    try:
        shutil.rmtree(path)
    except OSError as error:
        return "%s: %s" % (error.filename or path, error.strerror)
    return None


def jobs_in(project: str) -> "list[str]":
    """Return the names of job folders in a project; [] if it cannot be read."""
    try:
        names = os.listdir(os.path.join(expand(project), "jobs"))
    except OSError:
        return []
    return [name for name in names if ATTEMPT_NAME.fullmatch(name)]
