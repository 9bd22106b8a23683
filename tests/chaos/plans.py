"""What is drawn for a round from its seed, and from nothing else."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from tests.chaos.faults import (
    ACTS,
    FORGES_END,
    HABITS,
    HARMS_ITSELF,
    KINDS,
    REMOVES_STREAMS,
    Fault,
    Kind,
)
from tests.chaos.nodes import COMPILER

HOSTS = 3
# How the job is begun, and how it is meant to end.
Way = Literal["detach", "follow", "terminal"]
Goal = Literal["end", "stop", "ctrl-c", "fail"]
WAYS: tuple[Way, ...] = ("detach", "follow", "terminal")
GOALS: tuple[Goal, ...] = ("end", "stop", "ctrl-c", "fail")


# After these a node's supervisor has written no record.
SUPERVISOR_GONE = {
    "supervisor-killed", "node-rebooted", "node-shut-down", "session-ended",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A round, before it is played; or the other job of one."""

    seed: int
    nodes: tuple[int, ...]  # of the job, that of rank 0 first
    way: Way
    goal: Goal
    # Seconds after all ranks have begun, where somebody stops the job.
    goal_delay: float
    fail_rank: int  # who fails by itself where that is the goal, else -1
    restarts: int
    shared_home: bool  # what UGRO has on the nodes is one folder
    samples: bool  # stand-in cards, so that there are GPU samples to carry
    seconds: float  # what the script takes
    habits: tuple[str, ...]
    act: str  # of a hostile rank
    faults: tuple[Fault, ...]
    # A job on the nodes that this one has not, with the same agent.
    beside: Plan | None = None
    suffix: str = ""

    @property
    def name(self) -> str:
        """The job's."""
        return f"c{self.seed}{self.suffix}"

    @property
    def jobs(self) -> list[Plan]:
        """The plans of all jobs of the round."""
        return [self, *([self.beside] if self.beside else [])]

    def is_hit_by(self, fault: Fault) -> bool:
        """Whether it is this job that a fault hits, or both."""
        if fault.kind == "port-taken":
            return 0 in self.nodes
        return fault.node is None or fault.node in self.nodes

    @property
    def loud_rank(self) -> int:
        """The rank that has the habits that not all of them have."""
        return self.seed % len(self.nodes)

    @property
    def harmed(self) -> str:
        """The node of a hostile rank that may have harmed itself, "" without one."""
        is_harmed = "hostile-rank" in self.habits and self.act in HARMS_ITSELF
        return f"lab{self.nodes[self.loud_rank]}" if is_harmed else ""

    @property
    def removes_streams(self) -> bool:
        """Whether a hostile rank has taken away what could be compared with what came home."""
        return self.harmed != "" and self.act in REMOVES_STREAMS

    @property
    def words(self) -> tuple[str, ...]:
        """The launch."""
        script = [
            f"--seconds {self.seconds:.1f}",
            f"--loud-rank {self.loud_rank}",
        ]
        for habit in self.habits:
            script += [*HABITS[habit][0], *self._act_of(habit)]
        if self.restarts:
            script.append("--save-every 10")
        if self.goal == "fail":
            script.append(f"--fail-rank {self.fail_rank}")
        return (
            *("launch", "--name", self.name, "--args", " ".join(script)),
            *(
                ["--nodes", ",".join(f"lab{n}" for n in self.nodes)]
                if len(self.nodes) < HOSTS
                else []
            ),
            *(["--max-restarts", str(self.restarts)] if self.restarts else []),
            *(["--detach"] if self.way == "detach" else []),
        )

    def _act_of(self, habit: str) -> list[str]:
        return [self.act] if habit == "hostile-rank" else []

    @property
    def patience_seconds(self) -> float:
        """By when it must be over, also on a machine that is at many other things."""
        return 180 + sum(
            abs(fault.seconds) for fault in self.faults if KINDS[fault.kind].lasts
        )

    def __str__(self) -> str:
        faults = "; ".join(map(str, self.faults)) or "no fault"
        more = [
            self.way,
            f"{len(self.nodes)} nodes",
            *([f"beside it {len(self.beside.nodes)}"] if self.beside else []),
            *(["one home"] if self.shared_home else []),
            *([f"{self.restarts} restart"] if self.restarts else []),
        ]
        more += [" ".join([habit, *self._act_of(habit)]) for habit in self.habits]
        more += [*([self.goal] if self.goal != "end" else [])]
        return f"{faults} ({', '.join(more)})"


def available() -> list[str]:
    """The kinds of faults that can be done on this machine."""
    return [kind for kind in KINDS if kind != "clock-stepped" or COMPILER]


def draw(seed: int, kinds: Sequence[str] = ()) -> Plan:
    """The round of a seed. With `kinds`, exactly these faults and habits; else one fault of all, or two."""
    rng = random.Random(seed)
    known = list(KINDS)  # on every machine the same, so that a seed is the same round
    count = 1 if rng.random() < 0.55 else 2
    drawn = [
        rng.choices(known, [KINDS[kind].weight for kind in known])[0]
        for _ in range(count)
    ]
    chosen = [kind for kind in dict.fromkeys(kinds or drawn) if kind in KINDS]
    way = rng.choices(WAYS, [0.35, 0.4, 0.25])[0]
    goal = rng.choices(GOALS, [0.66, 0.14, 0.08, 0.12])[0]
    if "terminal-closed" in chosen:
        way = "terminal"
    if "launch-killed" in chosen and way == "detach":
        way = "follow"
    if goal == "ctrl-c" and (
        way == "detach" or {"terminal-closed", "launch-killed"} & set(chosen)
    ):
        goal = "stop"
    hosts = rng.choices([3, 2], [0.65, 0.35])[0]
    habits = [habit for habit in HABITS if rng.random() < 0.12]
    faults = [_drawn(rng, kind, KINDS[kind], hosts) for kind in chosen]
    loud = [habit for habit in habits if "--output" in HABITS[habit][0]]
    act = rng.choice(ACTS)
    if act in FORGES_END and SUPERVISOR_GONE & set(chosen):
        # Nobody is left who could say that it is forged.
        act = "forge-stop"
    plan = Plan(
        seed=seed,
        nodes=tuple(range(hosts)),
        way=way,
        goal=goal,
        goal_delay=rng.uniform(0.2, 1.8),
        fail_rank=rng.randrange(hosts) if goal == "fail" else -1,
        restarts=1 if rng.random() < 0.5 else 0,
        samples=rng.random() < 0.15,
        seconds=rng.uniform(1.2, 2.6),
        act=act,
        # Where a node's disk is filled, it is that of one node.
        shared_home=rng.random() < 0.15 and "node-disk-full" not in chosen,
        habits=tuple(habit for habit in HABITS if habit in kinds)
        or tuple(habit for habit in habits if habit not in loud[1:]),
        faults=tuple(fault for fault in faults if fault.kind in available()),
    )
    if hosts == HOSTS and rng.random() < 0.25:
        return _with_another(rng, plan)
    return plan


def _with_another(rng: random.Random, plan: Plan) -> Plan:
    """Divide the nodes between the job and another one, which nobody stops and whose ranks have no habits."""
    first = rng.choice([1, 2])
    beside = replace(
        plan,
        nodes=plan.nodes[first:],
        suffix="x",
        way=rng.choice(["detach", "follow"]),
        goal="end",
        fail_rank=-1,
        restarts=rng.choice([0, 1]),
        seconds=rng.uniform(1.2, 2.6),
        habits=(),
    )
    return replace(
        plan,
        nodes=plan.nodes[:first],
        fail_rank=plan.fail_rank % first if plan.goal == "fail" else -1,
        beside=beside,
    )


def _drawn(rng: random.Random, name: str, kind: Kind, hosts: int) -> Fault:
    moment = rng.choice(kind.moments)
    latest = {"before": 0.0, "launching": 2.5, "running": 1.4, "ending": 0.3}[moment]
    seconds = 0.0
    if kind.lasts:
        seconds = rng.choices(
            [rng.uniform(0.3, 3), rng.uniform(3, 8), rng.uniform(8, 60)],
            [0.8, 0.17, 0.03],
        )[0]
    elif name == "clock-stepped":
        seconds = rng.choice([-3600.0, 7200.0])
    return Fault(
        kind=name,
        node=rng.randrange(hosts) if kind.on_node else None,
        moment=moment,
        delay=rng.uniform(0, latest),
        seconds=seconds,
    )
