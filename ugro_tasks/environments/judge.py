"""The state of training environments: contents, differences from the recipe, causes of failures.

All functions are pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from msgspec import Struct

from ..cluster.model import Cluster, Node
from ..errors import EnvironmentFault
from ..hosts.answers import BuildFailed, EnvironmentAnswer, ProbeAnswer
from .recipe import Recipe, minor_of, recipe_of

# The answers with facts about a node's environment.
Facts = ProbeAnswer | EnvironmentAnswer

DIGITS_SHOWN = 7
INSTALL = {
    "pixi": "install it there as its own documentation says (the pixi of pip is another program)",
    "uv": "install it there for your user: python3 -m pip install --user uv",
    "pixi-unpack": "with pixi on a machine that has a network: pixi global install pixi-unpack; "
    "then copy the program to ~/.local/bin there",
}


class Fingerprint(Struct, frozen=True, kw_only=True):
    """The contents of an environment, as far as environments can differ."""

    digest: str | None  # of the recipe it was made from; None: unknown
    python: str | None
    torch: str | None
    cuda: str | None

    def __str__(self) -> str:
        if not self.python:
            return "none"
        lock = self.digest[:DIGITS_SHOWN] if self.digest else "-"
        cuda = f"CUDA {self.cuda}" if self.cuda else "no CUDA"
        torch = f"torch {self.torch} ({cuda})" if self.torch else "no torch"
        return f"{lock}, Python {self.python}, {torch}"


def fingerprint_of(facts: Facts) -> Fingerprint:
    """Return the fingerprint in the answer to a probe or an `environment` request."""
    stamp = facts.environment.known_stamp if facts.environment else None
    return Fingerprint(
        digest=stamp.digest if stamp else None,
        python=facts.torch.python,
        torch=facts.torch.torch,
        cuda=facts.torch.cuda,
    )


def behind(cluster: Cluster, facts: Mapping[str, Facts]) -> dict[str, str]:
    """Return {node: reason} for nodes with an environment that does not fit the project's files.

    `facts` are the answers of probes. Nodes that cannot be judged are left out: without facts,
    without files here, or with the manager `existing`.
    """
    found = {}
    for node in cluster.nodes:
        if node.name not in facts:
            continue
        reason = why_behind(cluster, node, facts[node.name])
        if reason:
            found[node.name] = reason
    return found


def why_behind(cluster: Cluster, node: Node, facts: Facts) -> str | None:
    """Return the reason for one node; see `behind`."""
    try:
        recipe = recipe_of(cluster, node)
    except EnvironmentFault:
        return None
    return difference(recipe, facts) if recipe else None


def difference(recipe: Recipe, facts: Facts) -> str | None:
    """Return the first difference between a node's environment and the recipe.

    None if there is none, or if the node did not answer about its environment.
    """
    built = facts.environment
    torch = facts.torch
    if built is None or not built.is_managed:
        return None
    if not built.there:
        return "not made yet"
    stamp = built.known_stamp
    if stamp is None:
        return "made by somebody else, or a sync was interrupted"
    if stamp.manager != recipe.manager:
        return f"made by {stamp.manager}, not by {recipe.manager}"
    if stamp.digest != recipe.digest:
        return (
            f"made from another {recipe.lock_name} "
            f"({stamp.digest[:DIGITS_SHOWN]}, here {recipe.digest[:DIGITS_SHOWN]})"
        )
    if torch.code != 0:
        return "its Python does not run any more"
    changed = []
    if minor_of(stamp.python) != minor_of(torch.python):
        changed.append(f"Python {stamp.python} is now {torch.python or 'gone'}")
    if stamp.torch != torch.torch:
        changed.append(f"torch {stamp.torch} is now {torch.torch or 'gone'}")
    if stamp.cuda != torch.cuda:
        changed.append(f"CUDA {stamp.cuda} is now {torch.cuda or 'gone'}")
    if not changed:
        return None
    return f"changed since it was made: {', '.join(changed)}"


def uneven(found: Mapping[str, Fingerprint]) -> str | None:
    """Describe the differences between the nodes' environments; None if they are equal."""
    columns: dict[str, dict[str, str | None]] = {
        "lock": {node: one.digest for node, one in found.items()},
        "Python": {node: minor_of(one.python) for node, one in found.items()},
        "torch": {node: one.torch for node, one in found.items()},
        "CUDA": {node: one.cuda for node, one in found.items()},
    }
    lines = []
    for name, values in columns.items():
        if len(set(values.values())) < 2:
            continue
        words = []
        for node, value in values.items():
            shown = (value or "none")[:20]
            words.append(f"{node} {shown}")
        lines.append(f"{name}: {', '.join(words)}")
    return "\n".join(lines) or None


def odd_versions(
    versions: Mapping[str, str | None], own: str | None
) -> dict[str, tuple[str, str]]:
    """Return {node: (its pixi, the right pixi)} for nodes with another pixi than this machine.

    `versions` is {node: its pixi}, `own` the pixi of this machine. Without one here, the newest
    of the nodes is the right one.
    """
    known = {node: version for node, version in versions.items() if version}
    if not known:
        return {}
    wanted = own or max(known.values(), key=_as_numbers)
    odd = {}
    for node, version in known.items():
        if version != wanted:
            odd[node] = (version, wanted)
    return odd


def _as_numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


# ---- causes of failed builds ----


DRAWN = " \u2502\u2570\u2500\u25b6\u00d7"  # drawn by pixi around a message
NO_NETWORK = re.compile(
    r"network is unreachable|name resolution|could not resolve|connection refused|no route to host|dns error|"
    r"failed to establish a new connection|failed to lookup|error sending request|connect timeout|timed out|"
    r"network connectivity is disabled|connection reset",
    re.I,
)
STALE = re.compile(
    r"lock[- ]?file.{0,40}not up[- ]to[- ]date|needs to be updated, but `--(?:locked|check)`",
    re.I | re.S,
)
NO_ROOM = re.compile(r"no space left on device|disk quota exceeded", re.I)
OTHER_HASH = re.compile(r"do not match the hashes|hash mismatch", re.I)
NO_PYTHON = re.compile(
    r"no interpreter found for python ([\d.]+)|requires a different python", re.I
)


def build_fault(node: Node, recipe: Recipe, failure: BuildFailed) -> EnvironmentFault:
    """Return the error for a failed build, with the node, the reason and a remedy.

    The error of a stale lock names no node, because all nodes have it.
    """
    if lock_is_stale(failure.tail):
        return stale_lock_fault(recipe)
    found = _by_phase(node, recipe, failure) or _by_tail(node, recipe, failure)
    reason, remedy = found
    return EnvironmentFault(f"{node.name}: {reason}\n    {remedy}")


def lock_is_stale(tail: str) -> bool:
    """Return whether an installer's last lines say that the lock does not fit the manifest."""
    return bool(STALE.search(tail))


def _by_phase(
    node: Node, recipe: Recipe, failure: BuildFailed
) -> tuple[str, str] | None:
    phase = failure.phase
    message = failure.message
    wanted = recipe.python or "3"
    if phase.startswith("no ") and phase.removeprefix("no ") in INSTALL:
        return _no_program(phase.removeprefix("no "))
    if phase == "no python":
        return _no_python(node, wanted)
    if phase == "no ensurepip":
        is_version = wanted[0].isdigit() and "." in wanted
        package = f"python{wanted}-venv" if is_version else "python3-venv"
        return (
            f"{message}: it lacks ensurepip and pip",
            f"sudo apt install {package} on {node.name}",
        )
    if phase == "not pinned":
        return (
            f"pip would install another file than constraints.txt pins: {message}",
            f"whoever serves it to {node.name} serves something else; or constraints.txt is to be rebuilt",
        )
    if phase == "theirs":
        return (
            message,
            f"name another folder as environment.path of {node.name} in the cluster file",
        )
    if phase == "broken":
        return (
            f"what was made does not run: {message}",
            "see whether its Python is still there",
        )
    return None


def _by_tail(node: Node, recipe: Recipe, failure: BuildFailed) -> tuple[str, str]:
    tail = failure.tail
    manager = "pip" if recipe.manager == "venv" else recipe.manager
    if NO_ROOM.search(f"{tail}\n{failure.message}"):
        room = ""
        if failure.free_bytes is not None:
            room = f" ({failure.free_bytes / 2**30:.1f} GiB free)"
        return (
            f"its disk is full{room}",
            f"free some space on {node.name}, then again: inv sync-envs",
        )
    if "__cuda" in tail:
        return (
            "pixi finds no CUDA driver there, and the lock has nothing for a machine without one",
            f"install the driver (see nvidia-smi on {node.name}), or give the manifest a platform without cuda; "
            "CONDA_OVERRIDE_CUDA=12.0 in the login environment there makes pixi believe in one",
        )
    if OTHER_HASH.search(tail):
        return (
            f"{manager} got a package that is not the pinned one: {_most_useful_line(tail)}",
            f"whoever serves it there serves something else; or rebuild {recipe.lock_name} and its pins",
        )
    if recipe.manager == "uv" and NO_PYTHON.search(tail):
        return _no_python(node, recipe.python or "")
    no_network = NO_NETWORK.search(tail)
    if no_network:
        return (
            f"{manager} reaches no packages from there ({no_network[0].lower()})",
            "is it online? For a node without internet: inv sync-envs --offline",
        )
    said = _most_useful_line(tail) or failure.message
    return (
        f"{manager} failed: {said}",
        f"all that it said is in {failure.log} on {node.name}",
    )


def stale_lock_fault(recipe: Recipe) -> EnvironmentFault:
    """Return the error for a lock that does not fit its manifest, with the remedy."""
    return EnvironmentFault(
        f"{recipe.lock_name} does not fit the manifest: it was changed since\n"
        f"    rebuild the lock on this machine: {recipe.manager} lock; then again: inv sync-envs"
    )


def _no_program(name: str) -> tuple[str, str]:
    folders = "~/.local/bin, ~/.cargo/bin and PATH"
    if name.startswith("pixi"):
        folders = "~/.pixi/bin and PATH"
    return f"{name} was not found (looked in {folders})", INSTALL[name]


def _no_python(node: Node, wanted: str) -> tuple[str, str]:
    if wanted[:1].isdigit():
        return (
            f"there is no Python {wanted} on it",
            f"install it (sudo apt install python{wanted}-venv), or name one as environment.python of {node.name}",
        )
    return (
        f"{wanted or 'a fitting Python'} is not there",
        f"correct environment.python of {node.name}",
    )


def _most_useful_line(tail: str) -> str:
    """Return the most useful line: the last one about an error, else the last."""
    said = [line for line in tail.splitlines() if not line.startswith("$ ")]
    lines = [line.strip(DRAWN) for line in said if line.strip(DRAWN)]
    errors = [line for line in lines if re.match(r"(error|fatal)\b", line, re.I)]
    return (errors or lines or [""])[-1][:300]
