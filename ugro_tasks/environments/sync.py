"""The same training environment on every node: what is behind is rebuilt, all nodes at once."""

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
    difference,
    explained,
    fingerprint_of,
    is_stale,
    odd_versions,
    stale,
    uneven,
)
from .package_store import fill, program, push
from .recipe import Recipe, missing_lock, place_of, recipe_of

LOOK_SECONDS = 60.0
# Without a word from a node, or without one of ours for the node: a build ends then, and leaves nothing.
SILENCE_SECONDS = 30.0


class Progress(Struct, frozen=True, kw_only=True):
    """How a build on a node goes: bytes written so far; `line` is what pip, uv or pixi said last."""

    phase: str
    seconds: float = 0.0
    bytes: int = 0
    line: str = ""


Tell = Callable[[str, Progress], None]


class State(Struct, frozen=True, kw_only=True):
    """A node's environment as it is, and why it is behind, None where it is not."""

    node: Node
    fingerprint: Fingerprint
    why: str | None
    recipe: Recipe | None  # None: nobody makes it
    facts: EnvironmentAnswer


class Synced(Struct, frozen=True, kw_only=True):
    """A node's environment after a sync. `why` says why it was rebuilt; None where there was nothing to do."""

    node: str
    before: Fingerprint
    after: Fingerprint
    why: str | None = None
    seconds: float = 0.0
    bytes: int = 0  # its size
    # Where on the node an environment that UGRO had not made was put.
    kept: str | None = None


def sync(
    fleet: Fleet,
    cluster: Cluster,
    tell: Tell,
    nodes: Collection[str] | None = None,
    *,
    offline: bool = False,
) -> dict[str, Synced | UgroError]:
    """{node: its environment after the sync, or why it is still behind} for all nodes, or those named.

    One round trip to a node where there is nothing to do. `tell` is told of the others, one call at a time; a UgroError
    that it raises ends what that node is at. What was in use on a node that fails stays in use. With `offline`, this
    machine fetches the packages and brings them. Raises EnvironmentFault or ToolMissing where there is nothing to make
    environments from.
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
    results |= _stale_uv_locks(cluster, todo) | _odd_pixis(states)
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
    """Every local node that trains from a venv has it; else EnvironmentFault. What is done goes to stderr."""
    local = [
        n.name
        for n in cluster.nodes
        if n.transport == "local" and n.environment.manager == "venv"
    ]
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


def survey(
    fleet: Fleet,
    cluster: Cluster,
    nodes: Collection[str] | None = None,
    *,
    offline: bool = False,
) -> dict[str, State | UgroError]:
    """What each of the nodes has, and whether it is behind."""

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

    return fleet.each(
        {node.name: partial(look, node) for node in _chosen(cluster, nodes)}
    )


def make_locks(cluster: Cluster, nodes: Collection[str] | None, tell: Tell) -> None:
    """Locks that are missing are made, by this machine's own uv or pixi. Raises ToolMissing, EnvironmentFault."""
    wanted: dict[Path, list[Node]] = {}
    for node in _chosen(cluster, nodes):
        if lock := missing_lock(cluster, node):
            wanted.setdefault(lock, []).append(node)
    for lock, its_nodes in wanted.items():
        manager = its_nodes[0].environment.manager
        path = program(manager)
        if path is None:
            raise ToolMissing(
                f"{lock} is missing, and {manager}, which makes it, is not on this machine\n"
                f"    install it here, or make the lock where it is ({manager} lock) and copy it to {cluster.root}"
            )
        for node in its_nodes:
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
    """One error for all that is not as it should be: which nodes are behind, and why; None where all are even."""
    faults = {
        name: result
        for name, result in results.items()
        if isinstance(result, UgroError)
    }
    if not faults:
        differing = uneven(
            {name: r.after for name, r in results.items() if isinstance(r, Synced)}
        )
        if not differing:
            return None
        return EnvironmentFault(
            f"the nodes' environments differ all the same:\n{differing}\n"
            "    the same files gave other packages there: another kind of machine, another Python, or no GPU driver "
            "where the others have one (nvidia-smi)"
        )
    # A stale lock is the same everywhere.
    texts = list(dict.fromkeys(error.text for error in faults.values()))
    even = [name for name in results if name not in faults]
    texts.append(
        f"behind, or not known: {', '.join(faults)}; what was in use there stays in use"
        + (f". Up to date: {', '.join(even)}" if even else "")
    )
    return SeveralErrors(
        faults.values(), "\n".join(texts), otherwise=EnvironmentFault.exit_code
    )


# ---- one node ----


def _chosen(cluster: Cluster, nodes: Collection[str] | None) -> list[Node]:
    return [node for node in cluster.nodes if nodes is None or node.name in nodes]


def _store(cluster: Cluster, state: State, tell: Tell) -> Path:
    assert state.recipe  # noqa: S101  (what is behind has one)
    tell(state.node.name, Progress(phase="fetching packages"))
    return fill(cluster, state.node, state.recipe, state.facts)


def _make(
    cluster: Cluster,
    state: State,
    store: Path | None,
    say: Callable[[Progress], None],
    host: Host,
) -> Synced:
    """Make the node's environment; raises why it cannot be made."""
    node, recipe = state.node, state.recipe
    assert recipe  # noqa: S101  (what is behind has one)
    if store:
        push(store, host, place_of(node), lambda percent: say(_pushing(percent)))
    stamp = state.facts.environment.known_stamp
    # Made from the same files, and yet not good: whatever it is, it is not kept.
    bad = stamp.made_at if stamp and stamp.digest == recipe.digest else None
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
        raise explained(node, recipe, answer)
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
    """The leases of all nodes on the same machine that train with the same environment."""

    def where(node: Node) -> tuple[Any, ...]:
        return (node.transport, node.address, node.user, place_of(node))

    return [other.slot for other in cluster.nodes if where(other) == where(node)]


# ---- what is the same for all nodes ----


def _stale_uv_locks(cluster: Cluster, todo: list[State]) -> dict[str, UgroError]:
    """{node: the error} where uv's lock is stale. On a node, uv may lack what it wants to see of the project."""
    by_uv = {
        state.node.name: state.recipe
        for state in todo
        if state.recipe and state.recipe.manager == "uv"
    }
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
    if done.returncode == 0 or not is_stale(done.stderr.decode("utf-8", "replace")):
        return {}
    return {name: stale(recipe) for name, recipe in by_uv.items()}


def _odd_pixis(states: Mapping[str, State | UgroError]) -> dict[str, UgroError]:
    """{node: the error} of nodes that are behind and whose pixi is not the others'."""
    by_pixi = {
        name: state
        for name, state in states.items()
        if isinstance(state, State) and state.recipe and state.recipe.manager == "pixi"
    }
    if not any(state.why for state in by_pixi.values()):
        return {}
    versions = {
        name: state.facts.environment.version for name, state in by_pixi.items()
    }
    odd = odd_versions(versions, version_of(program("pixi")))
    return {
        name: EnvironmentFault(
            f"{name}: pixi {version} is there, {wanted} elsewhere: the older may not read what the newer writes\n"
            f"    on {name}: pixi self-update --version {wanted}"
        )
        for name, (version, wanted) in odd.items()
        if by_pixi[name].why
    }
