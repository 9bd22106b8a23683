"""Shell completion: tasks, flags, jobs and nodes that fit the command line."""

from __future__ import annotations

import contextlib
import itertools
import shlex
from collections.abc import Iterator

from invoke.collection import Collection
from invoke.parser.context import ParserContext, to_flag

from ..errors import UgroError
from .command_line import Call, calls

JOBS_OFFERED = 50  # the newest
JOB_FLAGS = {"--resume"}
NODE_FLAGS = {"--nodes"}
CLUSTER_FLAGS = {"--cluster", "-c"}


def complete(collection: Collection, core: ParserContext, line: str) -> Iterator[str]:
    """Yield candidates for the last word; the shell keeps those that fit its beginning."""
    try:
        words = shlex.split(line)[1:]
    except ValueError:  # an open quote
        return
    last = words[-1] if words else ""
    before = words[-2] if len(words) > 1 else ""
    call = next(reversed(calls(words)), None)
    if last.startswith("-"):
        flag_value = list(_values(last, words, call))
        yield from flag_value or _flags(core, call)
        return
    values = list(_values(before, words, call))
    if values:
        yield from values
        return
    if call is None or (not call.words and last == call.task.typed_name):
        yield from sorted(collection.task_names)
    if call and call.task.names_job():
        yield from _jobs(_cluster(words))


def _flags(core: ParserContext, call: Call | None) -> list[str]:
    context = ParserContext(args=call.task.arguments()) if call else core
    return list(context.flag_names())


def _values(flag: str, words: list[str], call: Call | None) -> Iterator[str]:
    if call is None or not _has_flag(call, flag):
        return
    names_job = flag in {"--name", "-n"} and call.task.names_job()
    if flag in JOB_FLAGS or names_job:
        yield from _jobs(_cluster(words))
    elif flag in NODE_FLAGS:
        yield from _nodes(_cluster(words))
    elif flag in CLUSTER_FLAGS:
        yield "local"


def _has_flag(call: Call, flag: str) -> bool:
    return any(
        flag in map(to_flag, argument.names) for argument in call.task.arguments()
    )


def _cluster(words: list[str]) -> str | None:
    for flag, value in itertools.pairwise(words):
        if flag in CLUSTER_FLAGS:
            return value
    given = [word.partition("=")[2] for word in words if word.startswith("--cluster=")]
    return given[0] if given else None


def _jobs(cluster: str | None) -> list[str]:
    from .. import api

    with contextlib.suppress(UgroError, OSError):
        # An error message would end up in the line being typed.
        jobs = api.open_experiments(cluster).all()
        newest = list(itertools.islice(jobs, JOBS_OFFERED))
        names = [job.name for job in newest]
        ids = [job.job_id for job in newest]
        return list(dict.fromkeys([*names, *ids]))
    return []


def _nodes(cluster: str | None) -> list[str]:
    from .. import api

    with contextlib.suppress(UgroError, OSError):
        return [node.name for node in api.open_cluster(cluster).nodes]
    return []
