"""The same training environment on every node; stale ones are rebuilt, all nodes at once."""

from __future__ import annotations

import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import Struct

from ..cluster.model import Cluster, Node
from ..errors import EnvironmentFault, NodesBusy, SeveralErrors, ToolMissing, UgroError
from ..hosts import operations
from ..hosts.answers import BuildFailed, BuildProgress, EnvironmentAnswer
from ..hosts.fleet import Fleet
from ..hosts.host import Host
from ..hosts.requests import ask, ask_with_progress
from ..node.environment import version_of
from ..text import printable
from .judge import (
    Fingerprint,
    build_fault,
    difference,
    fingerprint_of,
    lock_is_stale,
    odd_versions,
    stale_lock_fault,
    uneven,
)
from .package_store import fill, program, push
from .recipe import Recipe, missing_lock, place_of, recipe_of

LOOK_SECONDS = 60.0
# Silence, from either side, after which a build is aborted and cleaned up.
SILENCE_SECONDS = 30.0


class Progress(Struct, frozen=True, kw_only=True):
    """The progress of a build: bytes written so far, and the last line of pip, uv or pixi."""

    phase: str
    seconds: float = 0.0
    bytes: int = 0
    line: str = ""


Tell = Callable[[str, Progress], None]


class State(Struct, frozen=True, kw_only=True):
    """A node's environment, and the reason if it is behind."""

    node: Node
    fingerprint: Fingerprint
    why: str | None
    recipe: Recipe | None  # None: the manager is `existing`
    facts: EnvironmentAnswer


class Synced(Struct, frozen=True, kw_only=True):
    """A node's environment after a sync; `why` is the reason for a rebuild, None without one."""

    node: str
    before: Fingerprint
    after: Fingerprint
    why: str | None = None
    seconds: float = 0.0
    bytes: int = 0  # its size
    # The new path, on the node, of an environment not made by UGRO.
    kept: str | None = None


def sync(
    fleet: Fleet,
    cluster: Cluster,
    tell: Tell,
    nodes: Collection[str] | None = None,
    *,
    offline: bool = False,
) -> dict[str, Synced | UgroError]:
    """Bring the environments of all nodes, or of those named, up to date.

    Returns {node: its environment after the sync, or the error}; a node with an error keeps the
    environment in use before. A node up to date costs one round trip. `tell` gets the progress of
    the others, one call at a time; a UgroError raised by it ends the build of that node. With
    `offline`, this machine fetches the packages and copies them to the nodes. Raises
    EnvironmentFault or ToolMissing if there is nothing to make environments from.
    """
    telling = threading.Lock()

    def say(node: str, progress: Progress) -> None:
        with telling:
            tell(node, progress)

    make_locks(cluster, nodes, say)
    states = survey(fleet, cluster, nodes, offline=offline)
    results: dict[str, Synced | UgroError] = {}
    todo = []
    for name, state in states.items():
        if isinstance(state, UgroError):
            results[name] = state
        elif state.why:
            todo.append(state)
        else:
            results[name] = Synced(
                node=name, before=state.fingerprint, after=state.fingerprint
            )
    results |= _stale_uv_locks(cluster, todo)
    results |= _odd_pixis(states)
    work: dict[str, Callable[[Host], Synced]] = {}
    for state in todo:
        name = state.node.name
        if name in results:
            continue
        try:
            store = _store(cluster, state, say) if offline else None
        except UgroError as error:
            results[name] = error
        else:
            work[name] = partial(_make, cluster, state, store, partial(say, name))
    results |= fleet.each(work)
    return {name: results[name] for name in states}


def ensure_local(cluster: Cluster) -> None:
    """Build missing venvs of local nodes, progress on stderr.

    Raises EnvironmentFault if that fails.
    """
    local = [node.name for node in cluster.nodes if _is_local_venv(node)]
    said: set[str] = set()

    def tell(_node: str, progress: Progress) -> None:
        words = progress.line if progress.phase == "installing" else progress.phase
        if words and words not in said:
            said.add(words)
            sys.stderr.write(f"{printable(words)}\n")

    with Fleet.of(cluster.subset(local)) as fleet:
        fault = fault_of(sync(fleet, cluster, tell, local))
    if fault:
        raise fault


def _is_local_venv(node: Node) -> bool:
    return node.is_local and node.environment.manager == "venv"


def survey(
    fleet: Fleet,
    cluster: Cluster,
    nodes: Collection[str] | None = None,
    *,
    offline: bool = False,
) -> dict[str, State | UgroError]:
    """Ask each node for its environment, and compare it with the recipe."""

    def look(node: Node, host: Host) -> State:
        recipe = recipe_of(cluster, node)
        request = operations.Environment(
            environment=place_of(node),
            interpreter=node.environment.interpreter(node.project),
            python=recipe.python if recipe else None,
            offline=offline,
        )
        facts = ask(host, request, timeout_seconds=LOOK_SECONDS)
        why = difference(recipe, facts) if recipe else None
        return State(
            node=node,
            fingerprint=fingerprint_of(facts),
            why=why,
            recipe=recipe,
            facts=facts,
        )

    chosen = _chosen(cluster, nodes)
    return fleet.each({node.name: partial(look, node) for node in chosen})


def make_locks(cluster: Cluster, nodes: Collection[str] | None, tell: Tell) -> None:
    """Make missing lock files with uv or pixi here; raises ToolMissing or EnvironmentFault."""
    wanted: dict[Path, list[Node]] = {}
    for node in _chosen(cluster, nodes):
        lock = missing_lock(cluster, node)
        if lock:
            wanted.setdefault(lock, []).append(node)
    for lock, users in wanted.items():
        manager = users[0].environment.manager
        path = program(manager)
        if path is None:
            raise ToolMissing(
                f"{lock} is missing, and {manager}, which makes it, is not on this machine\n"
                f"    install it here, or make the lock where it is ({manager} lock) and copy it to {cluster.root}"
            )
        for node in users:
            tell(node.name, Progress(phase=f"making {lock.name}"))
        done = subprocess.run(
            [path, "lock"],
            cwd=cluster.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
        )
        if done.returncode != 0 or not lock.exists():
            said = (done.stderr or done.stdout).decode("utf-8", "replace").strip()
            raise EnvironmentFault(
                f"{lock} is missing and cannot be made; {manager} lock says:\n{said}"
            )


def fault_of(results: Mapping[str, Synced | UgroError]) -> UgroError | None:
    """Return one error for all nodes that are behind or differ; None if all are even."""
    faults: dict[str, UgroError] = {}
    good: dict[str, Fingerprint] = {}
    for name, result in results.items():
        if isinstance(result, UgroError):
            faults[name] = result
        else:
            good[name] = result.after
    if not faults:
        differing = uneven(good)
        if not differing:
            return None
        return EnvironmentFault(
            f"the nodes' environments differ all the same:\n{differing}\n"
            "    the same files gave other packages there: another kind of machine, another Python, or no GPU driver "
            "where the others have one (nvidia-smi)"
        )
    # A stale lock gives the same text for each node.
    texts = list(dict.fromkeys(error.text for error in faults.values()))
    summary = (
        f"behind, or not known: {', '.join(faults)}; what was in use there stays in use"
    )
    if good:
        summary += f". Up to date: {', '.join(good)}"
    texts.append(summary)
    return SeveralErrors(
        faults.values(), "\n".join(texts), otherwise=EnvironmentFault.exit_code
    )


# ---- one node ----


def _chosen(cluster: Cluster, nodes: Collection[str] | None) -> list[Node]:
    return [node for node in cluster.nodes if nodes is None or node.name in nodes]


def _store(cluster: Cluster, state: State, tell: Tell) -> Path:
    assert state.recipe  # noqa: S101  (a stale environment has one)
    tell(state.node.name, Progress(phase="fetching packages"))
    return fill(cluster, state.node, state.recipe, state.facts)


def _make(
    cluster: Cluster,
    state: State,
    store: Path | None,
    say: Callable[[Progress], None],
    host: Host,
) -> Synced:
    """Build the node's environment; raises the reason if that fails."""
    node = state.node
    recipe = state.recipe
    assert recipe  # noqa: S101  (a stale environment has one)
    if store:
        push(store, host, place_of(node), lambda percent: say(_pushing(percent)))
    stamp = state.facts.environment.known_stamp
    # Made from the same files and yet behind, so it must be damaged.
    bad = None
    if stamp and stamp.digest == recipe.digest:
        bad = stamp.made_at
    request = operations.Build(
        environment=place_of(node),
        interpreter=node.environment.interpreter(node.project),
        python=recipe.python,
        offline=store is not None,
        files={name: len(content) for name, content in recipe.files.items()},
        digest=recipe.digest,
        bad=bad,
        slots=_slots(cluster, node),
        token=f"sync-envs.{secrets.token_hex(4)}:{node.name}:{node.slot}",
        controller=f"{socket.gethostname()}:{cluster.root}",
        silence_seconds=SILENCE_SECONDS,
    )
    try:
        answer = ask_with_progress(
            host,
            request,
            lambda progress: say(_in_progress(progress)),
            blob=b"".join(recipe.files.values()),
        )
    except NodesBusy as error:
        raise NodesBusy(
            f"{error.text}\n    its environment was not touched: a running job still imports from it; "
            "wait for the job or stop it, then again: inv sync-envs"
        ) from error
    if isinstance(answer, BuildFailed):
        raise build_fault(node, recipe, answer)
    return Synced(
        node=node.name,
        before=state.fingerprint,
        after=fingerprint_of(answer),
        why=state.why,
        seconds=answer.seconds,
        bytes=answer.bytes,
        kept=answer.kept,
    )


def _in_progress(told: BuildProgress) -> Progress:
    return Progress(
        phase=told.phase, seconds=told.seconds, bytes=told.bytes, line=told.line
    )


def _pushing(percent: int) -> Progress:
    return Progress(phase="pushing packages", line=f"{percent} %")


def _slots(cluster: Cluster, node: Node) -> list[str]:
    """Return the leases of all nodes that share this node's machine and environment."""

    def where(node: Node) -> tuple[Any, ...]:
        return (node.transport, node.address, node.user, place_of(node))

    return [other.slot for other in cluster.nodes if where(other) == where(node)]


# ---- faults shared by all nodes ----


def _stale_uv_locks(cluster: Cluster, todo: list[State]) -> dict[str, UgroError]:
    """Return {node: error} for all uv nodes if the lock is stale.

    It is checked here, because a node may lack project files that uv needs for the check.
    """
    by_uv = {}
    for state in todo:
        if state.recipe and state.recipe.manager == "uv":
            by_uv[state.node.name] = state.recipe
    uv = program("uv")
    if not by_uv or uv is None:
        return {}
    try:
        done = subprocess.run(
            [uv, "lock", "--check"],
            cwd=cluster.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=LOOK_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {}
    if done.returncode == 0 or not lock_is_stale(
        done.stderr.decode("utf-8", "replace")
    ):
        return {}
    return {name: stale_lock_fault(recipe) for name, recipe in by_uv.items()}


def _odd_pixis(states: Mapping[str, State | UgroError]) -> dict[str, UgroError]:
    """Return {node: error} for nodes that are behind and have another pixi than the rest."""
    by_pixi: dict[str, State] = {}
    for name, state in states.items():
        if isinstance(state, UgroError) or state.recipe is None:
            continue
        if state.recipe.manager == "pixi":
            by_pixi[name] = state
    if not any(state.why for state in by_pixi.values()):
        return {}
    versions = {
        name: state.facts.environment.version for name, state in by_pixi.items()
    }
    odd = odd_versions(versions, version_of(program("pixi")))
    faults: dict[str, UgroError] = {}
    for name, (version, wanted) in odd.items():
        if by_pixi[name].why:
            faults[name] = EnvironmentFault(
                f"{name}: pixi {version} is there, {wanted} elsewhere: the older may not read what the newer writes\n"
                f"    on {name}: pixi self-update --version {wanted}"
            )
    return faults
