"""A launch without effects."""

from __future__ import annotations

from msgspec import Struct

from ..backends.ssh.plan import make_plan
from ..cluster.model import Cluster
from ..errors import NotFit
from ..jobs.plan import LaunchPlan
from ..jobs.spec import JobSpec
from ..training.batch_sizes import model_to_look_for
from .spec import draft


class Rehearsal(Struct, frozen=True, kw_only=True):
    """The effects of a launch now."""

    plan: LaunchPlan
    environments: dict[str, str]  # {node: reason to rebuild its environment first}
    refusals: list[str]  # reasons to refuse it


def rehearse(spec: JobSpec, cluster: Cluster) -> Rehearsal:
    """Return the plan of a launch now; nothing is written anywhere.

    Raises NotFit if a node cannot be asked.
    """
    # Late: a launch itself needs no SSH, which takes longer to load than all the rest.
    from ..environments.judge import behind
    from ..health.report import examine
    from ..hosts.fleet import Fleet
    from ..training.batch_sizes import refusals

    record = draft(spec, cluster)
    with Fleet.of(cluster) as fleet:
        health = examine(fleet, cluster, model=model_to_look_for(record))
    missing = {node.node for node in health.nodes if not node.reachable}
    if missing:
        words = ["no plan without a word from every node:"]
        for node, check in health.faults:
            if node in missing:
                words.append(f"{node}: {check.value}\n    {check.fix}")
        raise NotFit("\n".join(words))
    plan = make_plan(record, cluster, health.facts(), resume=record.resume)
    late = behind(cluster, health.facts()) if spec.sync else {}
    reasons = []
    refused = health.refusal(force=spec.force, late=late)
    if refused:
        reasons.append(refused.text)
    if not spec.force:
        reasons += refusals(plan)
    return Rehearsal(plan=plan, environments=late, refusals=reasons)
