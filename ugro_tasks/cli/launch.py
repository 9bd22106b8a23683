"""`inv launch`."""

from __future__ import annotations

from typing import Any

from .flags import CLUSTER_HELP, JSON_HELP, NODES_HELP, decimal, given, whole
from .task import task


@task(
    help={
        "name": "the experiment's name",
        "model": "model to train (default: from the cluster file)",
        "dataset": "data set to train on (default: from the cluster file)",
        "epochs": "number of epochs (default: from the cluster file)",
        "lr": "learning rate (default: from the cluster file)",
        "script": "script in the scripts folder (default: from the cluster file)",
        "args": 'more arguments for the script: --args "--batch-size 4"',
        "set": "SECTION.KEY=VALUE of config/training_defaults.yaml, e.g. training.warmup_steps=50; may be repeated",
        "env": "KEY=VALUE for the script's environment; may be repeated",
        "resume": "go on from the last whole checkpoint of this job, with its parameters where no flag says otherwise",
        "max-restarts": "after a failed rank or a lost node start all ranks again, from the last whole checkpoint",
        "min-nodes": "a restart may do with so few nodes (default: all)",
        "sync": "bring environments that are behind up to date first",
        "cluster": CLUSTER_HELP,
        "nodes": NODES_HELP,
        "detach": "return as soon as all ranks run",
        "dry-run": "show what would run where, and start nothing",
        "force": "launch although a health check fails",
        "quiet": "no output of the ranks, only what happens to the job",
        "verbose": "show every command in full",
        "json": JSON_HELP,
    },
    iterable=["env", "set"],
)
def launch(
    _context: Any,
    name: str | None = None,
    model: str | None = None,
    dataset: str | None = None,
    epochs: str | None = None,
    lr: str | None = None,
    script: str | None = None,
    args: str | None = None,
    set: list[str] | None = None,  # noqa: A002
    env: list[str] | None = None,
    resume: str | None = None,
    max_restarts: str = "0",
    min_nodes: str | None = None,
    sync: bool = True,
    cluster: str | None = None,
    nodes: str | None = None,
    detach: bool = False,
    dry_run: bool = False,
    force: bool = False,
    quiet: bool = False,
    verbose: bool = False,
    json: bool = False,
) -> None:
    """Train on all nodes at once and follow the run; Ctrl-C stops it everywhere."""
    from ..cluster.file import load_cluster
    from ..jobs.experiments import Experiments
    from ..launch.spec import draft, spec_from
    from ..launch.submit import submit
    from .interrupts import Interrupts

    chosen = load_cluster(cluster).select(nodes)
    spec = spec_from(
        chosen,
        name=name if resume else given(name, "--name"),
        resume=resume,
        script=script,
        args=args,
        env=env or [],
        sets=set or [],
        flags={
            "model": model,
            "dataset": dataset,
            "epochs": whole(epochs, "--epochs", 1),
            "learning_rate": decimal(lr, "--lr"),
        },
        force=force,
        sync=sync,
        max_restarts=whole(max_restarts, "--max-restarts") or 0,
        min_nodes=whole(min_nodes, "--min-nodes", 1),
    )
    draft(spec, chosen)
    if dry_run:
        from ..launch.dry_run import rehearse
        from .show.launch import show_dry_run

        return show_dry_run(rehearse(spec, chosen), as_json=json)
    with Interrupts() as interrupts:
        experiment = submit(spec, chosen)
        # What shows the job is loaded while the agent is at work on it.
        from .show.follow import Follower

        experiments = Experiments(chosen.experiments)
        shown = Follower(experiments, experiment, interrupts, quiet=quiet, verbose=verbose, as_json=json)
        return shown.until_running() if detach else shown.until_ended(interrupt_stops=True)
