"""`inv launch`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .flags import CLUSTER_HELP, JSON_HELP, NODES_HELP, whole
from .task import task

if TYPE_CHECKING:
    from ..jobs.state import JobState
    from ..launch.dry_run import Rehearsal


@task(
    help={
        "name": "the experiment's name (default: that of the script)",
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
    group="run",
    iterable=["env", "set"],
)
def launch(
    _context: Any,
    name: str | None = None,
    model: str | None = None,
    dataset: str | None = None,
    epochs: str | int | None = None,
    lr: str | float | None = None,
    script: str | None = None,
    args: str | None = None,
    set: list[str] | None = None,  # noqa: A002
    env: list[str] | None = None,
    resume: str | None = None,
    max_restarts: str | int = 0,
    min_nodes: str | int | None = None,
    sync: bool = True,
    cluster: str | None = None,
    nodes: str | list[str] | None = None,
    detach: bool = False,
    dry_run: bool = False,
    force: bool = False,
    quiet: bool = False,
    verbose: bool = False,
    json: bool = False,
) -> JobState | Rehearsal:
    """Train on all nodes at once and follow the run; Ctrl-C stops it everywhere."""
    from .. import api
    from .interrupts import Interrupts

    chosen = api.open_cluster(cluster, nodes)
    options: api.LaunchOptions = {
        "model": model,
        "dataset": dataset,
        "epochs": epochs,
        "learning_rate": lr,
        "script": script,
        "args": args,
        "settings": set or [],
        "env": env or [],
        "resume": resume,
        "max_restarts": whole(max_restarts, "--max-restarts") or 0,
        "min_nodes": whole(min_nodes, "--min-nodes", 1),
        "sync": sync,
        "force": force,
        "cluster": chosen,
    }
    if dry_run:
        from .show.launch import show_dry_run

        found = api.dry_run(name, **options)
        show_dry_run(found, as_json=json)
        return found
    with Interrupts() as interrupts:
        experiment = api.launch(name, **options)
        # Loaded late: the agent is at work on the job meanwhile.
        from .show.follow import Follower

        experiments = api.open_experiments(chosen)
        shown = Follower(
            experiments,
            experiment,
            interrupts,
            quiet=quiet,
            verbose=verbose,
            as_json=json,
        )
        if detach:
            shown.until_running()
        else:
            shown.until_ended(interrupt_stops=True)
        return shown.state
