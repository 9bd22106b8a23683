"""Checks between values of a cluster file.

They read the raw data rather than the validated form, so that one bad value hides no other fault.
"""

import ipaddress
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from .values import NODE_NAME_MAX, RANK_MAX, shown
from .yaml_lines import Document, Loc, written

# Two spellings of one thing, as (section, one, other).
SYNONYMS = [
    ("environment", "conda_env", "name"),
    ("master", "port", "ssh_port"),
    ("paths", "results", "experiments"),
    ("training", "gradient_accumulation", "gradient_accumulation_steps"),
]


def check_synonyms(document: Document) -> None:
    """Find keys given twice, in two spellings."""
    for loc, section in _sections(document.data, ()):
        for name, one, other in SYNONYMS:
            if loc[-1:] != (name,):
                continue
            if one in section and other in section:
                line = document.line((*loc, other))
                words = f"is the same as {other} on line {line}; keep one"
                document.fault((*loc, one), words)
    communication = ("cluster", "communication", "timeout_seconds")
    timeouts = ("timeouts", "rendezvous_seconds")
    data = document.data
    if _value_at(data, communication) and _value_at(data, timeouts):
        line = document.line(communication)
        words = f"is the same as {written(communication)} on line {line}; keep one"
        document.fault(timeouts, words)


def _sections(data: Any, loc: Loc) -> Iterator[tuple[Loc, dict[str, Any]]]:
    """Yield (place, section) of all sections at any depth, outer ones first."""
    if isinstance(data, dict):
        yield loc, data
        for key, value in data.items():
            yield from _sections(value, (*loc, key))
    elif isinstance(data, list):
        for index, value in enumerate(data):
            yield from _sections(value, (*loc, index))


def _value_at(data: Any, loc: Loc) -> Any:
    """Return the value at `loc`; None if it is missing or something on the way is no section."""
    for part in loc:
        if not isinstance(data, dict):
            return None
        data = data.get(part)
    return data


class Machine(NamedTuple):
    """A node as written in the file, with values not validated yet."""

    loc: Loc
    keys: dict[str, Any]
    place: int

    @property
    def name(self) -> Any:
        """Return the node's name in the cluster; not a string if the file gives none."""
        if self.loc[0] == "nodes":
            return self.loc[1]
        return self.keys.get("name") or self.keys.get("hostname", "master")

    def loc_of(self, key: str) -> Loc:
        """Return the place of a key in this node's section."""
        return (*self.loc, key)

    def claims(self) -> Iterator[tuple[str, str, object]]:
        """Yield each value reserved to this node as (what, key, value), if it is valid."""
        if self.loc[0] != "nodes" and isinstance(self.name, str):
            yield "name", "name", self.name
        rank = _whole_number(self.keys.get("rank", str(self.place)))
        if rank is not None and 0 <= rank <= RANK_MAX:
            yield "rank", "rank", rank
        address = self.keys.get("ip")
        if isinstance(address, str) and self.keys.get("transport") != "local":
            try:
                yield "address", "ip", str(ipaddress.ip_address(address))
            except ValueError:
                # The form reports it, in better words.
                return


_WHOLE = TypeAdapter(int)


def _whole_number(value: object) -> int | None:
    """Parse a whole number by the rules of a form; return None if it is none."""
    try:
        return _WHOLE.validate_python(value)
    except ValidationError:
        return None


def check_machines(document: Document) -> None:
    """Find faults between nodes, such as a name, rank or address given twice."""
    _check_which_form(document)
    machines = _machines(document.data)
    if not machines and document.data.get("nodes") == {}:
        words = "no machine is in it; write one below: a name, and in its section an ip"
        document.fault(("nodes",), words)
    taken: dict[tuple[str, object], Machine] = {}
    for machine in machines:
        _check_hostname_as_name(document, machine)
        _check_claims(document, machine, taken)
        if machine.keys.get("transport") == "local" and "jump" in machine.keys:
            words = "has no use with transport: local; remove it"
            document.fault(machine.loc_of("jump"), words)
    by_rank: dict[Any, Machine] = {}
    for (what, value), machine in taken.items():
        if what == "rank":
            by_rank[value] = machine
    # Otherwise a rank is invalid or taken, a fault already reported.
    if len(by_rank) == len(machines):
        _check_ranks(document, by_rank)


def _check_which_form(document: Document) -> None:
    """Find a mixture of the two forms, and a file without a master."""
    data = document.data
    if "nodes" in data:
        for other in (("workers",), ("cluster", "master")):
            if _value_at(data, other) is not None:
                line = document.line(("nodes",))
                words = f"does not go with `nodes` on line {line}; keep one form"
                document.fault(other, words)
    elif "cluster" not in data:
        words = "is missing; its `master` is the machine of rank 0"
        document.fault(("cluster",), words)
    elif isinstance(data["cluster"], dict) and "master" not in data["cluster"]:
        words = "is missing; give the machine of rank 0 here: hostname, ip, user"
        document.fault(("cluster", "master"), words)


def _check_hostname_as_name(document: Document, machine: Machine) -> None:
    """Find a hostname used as the node's name and too long for one."""
    if machine.loc[0] == "nodes" or "name" in machine.keys:
        return
    if len(str(machine.name)) > NODE_NAME_MAX:
        limit = f"{NODE_NAME_MAX} characters at most"
        words = f"is too long for the node's name ({limit}); give it a name, too"
        document.fault(machine.loc_of("hostname"), words)


def _check_claims(
    document: Document, machine: Machine, taken: dict[tuple[str, object], Machine]
) -> None:
    """Find a name, rank or address of an earlier node, and note the new ones in `taken`."""
    for what, key, value in machine.claims():
        first = taken.setdefault((what, value), machine)
        if first is machine:
            continue
        loc = machine.loc_of(key) if key in machine.keys else machine.loc
        line = document.line(first.loc_of(key))
        holder = f"{written(first.loc)} on line {line}"
        document.fault(loc, f"{what} {value} is taken by {holder}")


def check_batch_sizes(document: Document) -> None:
    """Find batch sizes of unknown nodes, and nodes without one."""
    loc = ("training", "batch_size_per_gpu")
    sizes = _value_at(document.data, loc)
    machines = _machines(document.data)
    names = [machine.name for machine in machines if isinstance(machine.name, str)]
    if not isinstance(sizes, dict):
        return
    # A node without a valid name is a fault of its own.
    if len(names) < len(machines):
        return
    unknown = [name for name in sizes if name not in names]
    for name in unknown:
        near = get_close_matches(name, names, n=1)
        if near:
            hint = f"did you mean {near[0]}?"
        else:
            hint = f"the nodes are: {', '.join(names)}"
        document.fault((*loc, name), f"there is no such node; {hint}")
    missing = ", ".join(name for name in names if name not in sizes)
    if missing and not unknown:
        words = f"{missing} is missing; give every node its number, or write auto"
        document.fault(loc, words)


def _machines(data: dict[str, Any]) -> list[Machine]:
    """List the machines of either form, leaving out values that are no sections."""
    found = _named_machines(data) if "nodes" in data else _master_and_workers(data)
    return [
        Machine(loc, keys, place)
        for place, (loc, keys) in enumerate(found)
        if isinstance(keys, dict)
    ]


def _named_machines(data: dict[str, Any]) -> list[tuple[Loc, Any]]:
    nodes = data["nodes"]
    if not isinstance(nodes, dict):
        return []
    return [(("nodes", name), keys) for name, keys in nodes.items()]


def _master_and_workers(data: dict[str, Any]) -> list[tuple[Loc, Any]]:
    master: Loc = ("cluster", "master")
    found = [(master, _value_at(data, master))]
    workers = data.get("workers")
    if isinstance(workers, list):
        found += [(("workers", index), keys) for index, keys in enumerate(workers)]
    return found


def _check_ranks(document: Document, by_rank: dict[Any, Machine]) -> None:
    """Find gaps in distinct ranks, and a role or master_ip contradicting them."""
    if 0 in by_rank:
        _check_gap(document, by_rank)
        _check_roles(document, by_rank)
        _check_master_ip(document, by_rank[0])
    elif by_rank and "nodes" in document.data:
        document.fault(("nodes",), "no node has rank 0; give it to the master")


def _check_gap(document: Document, by_rank: dict[Any, Machine]) -> None:
    """Find a rank beyond the number of nodes."""
    count = len(by_rank)
    last = max(by_rank)
    if last < count:
        return
    free = next(rank for rank in range(count) if rank not in by_rank)
    words = (
        f"rank {last} leaves a gap: "
        f"{count} nodes have the ranks 0 to {count - 1}, and {free} is free"
    )
    document.fault(by_rank[last].loc_of("rank"), words)


def _check_roles(document: Document, by_rank: dict[Any, Machine]) -> None:
    """Find a role unlike the node's rank; other words are reported by the form."""
    for rank, machine in by_rank.items():
        fitting = "master" if rank == 0 else "worker"
        role = machine.keys.get("role")
        if role in ("master", "worker") and role != fitting:
            words = f"{role} does not fit rank {rank}; the master is the node of rank 0"
            document.fault(machine.loc_of("role"), words)


def _check_master_ip(document: Document, master: Machine) -> None:
    """Find a cluster.master_ip unlike the ip of the node of rank 0."""
    ip = master.keys.get("ip")
    promised = _value_at(document.data, ("cluster", "master_ip"))
    if promised and ip and promised != ip:
        line = document.line(master.loc_of("ip"))
        where = f"the node of rank 0, {shown(ip)} on line {line}"
        words = f"{shown(promised)} is not the ip of {where}"
        document.fault(("cluster", "master_ip"), words)
