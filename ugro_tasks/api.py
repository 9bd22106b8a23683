"""The Python interface: a function for each command, which takes plain values and returns data.

    from ugro_tasks import api

    job = api.launch("exp1", epochs=3, nodes=["gpu1", "gpu2"])
    state = api.wait(job)
    print(state.phase, api.results(job).checkpoints)

Everywhere `cluster` is what --cluster takes (None: UGRO_CLUSTER, else ./cluster.yaml) or a Cluster, `nodes` are names,
as a list or with commas between them, and a job is its name, its whole id, or what `launch` and `find` returned. What
goes wrong is raised as a UgroError. Nothing is printed.

Each function imports what it needs when it is called: a command that asks no node loads no SSH.
"""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

from msgspec import Struct

from .errors import HostError, StopUnproven, UgroError

if TYPE_CHECKING:
    from .cluster.model import Cluster
    from .environments.sync import Progress, State, Synced
    from .health.report import ClusterHealth
    from .hosts.answers import Process
    from .jobs.experiment import Experiment
    from .jobs.experiments import Experiments
    from .jobs.spec import JobSpec
    from .jobs.state import Event, JobState
    from .jobs.watch import Line
    from .jobs.watch import Progress as Metrics
    from .launch.dry_run import Rehearsal
    from .outputs.clean import Cleaning
    from .reports.results import Results
    from .reports.status import JobLine, JobReport


class Gathering(Struct, frozen=True, kw_only=True):
    """Where the outputs of a job are, or with `dry_run` would come to."""

    job_id: str
    folder: str
    nodes: tuple[str, ...]  # whose outputs were fetched
    # Nodes on which `clean` has left nothing; what was there came home before.
    cleaned: tuple[str, ...]


class FirstTime(Struct, frozen=True, kw_only=True):
    """What `init` would do on a node."""

    node: str
    project: str  # the folder that is made where it is not there
    new_key: str | None  # the host's key that would have to be trusted first
    unreached: str | None = None  # why it could not be asked


# ---- the cluster and its jobs ----


def open_cluster(
    cluster: str | Cluster | None = None, nodes: str | Iterable[str] | None = None
) -> Cluster:
    """Return the chosen cluster, with only these nodes. Raises ClusterFileError and UsageError."""
    from .cluster.file import load_cluster

    chosen = (
        load_cluster(cluster)
        if cluster is None or isinstance(cluster, str)
        else cluster
    )
    return chosen.select(nodes)


def open_experiments(cluster: str | Cluster | None = None) -> Experiments:
    """Return the experiments folder of the chosen cluster."""
    from .jobs.experiments import Experiments

    return Experiments(open_cluster(cluster).experiments)


def find(job: str | Experiment, cluster: str | Cluster | None = None) -> Experiment:
    """Return the newest job of this name, or the one with this id. Raises JobNotFound."""
    return open_experiments(cluster).find(job) if isinstance(job, str) else job


# ---- start here ----


def init(
    nodes: str | Iterable[str] | None = None,
    cluster: str | Cluster | None = None,
    *,
    agree: Callable[[str], bool] | None = None,
    tell: Callable[[str], None] = lambda _message: None,
) -> ClusterHealth:
    """Record unknown host keys, make the folders, and return the health of the cluster after that.

    `agree` is asked before a key is recorded, None agrees to all; `tell` is told of each. Raises HostKeyUnknown where
    it says no.
    """
    from .health.init import make_folders
    from .hosts.trust import trust_host_keys

    chosen = open_cluster(cluster, nodes)
    open_experiments(chosen).make_folder()
    trust_host_keys(chosen, tell, agree)
    return make_folders(chosen)


def first_time(
    nodes: str | Iterable[str] | None = None, cluster: str | Cluster | None = None
) -> list[FirstTime]:
    """Return what `init` would do, and do nothing."""
    from .hosts.fleet import Fleet
    from .hosts.trust import new_key_of

    chosen = open_cluster(cluster, nodes)
    with Fleet.of(chosen) as fleet:
        answers = fleet.map(
            lambda host: new_key_of(host.node, chosen.timeouts.connect_seconds)
        )
    found = []
    for node in chosen.nodes:
        answer = answers[node.name]
        unreached = answer.text if isinstance(answer, HostError) else None
        new_key = None
        if answer is not None and not isinstance(answer, HostError):
            new_key = f"{answer.name} {answer.fingerprint}"
        found.append(
            FirstTime(
                node=node.name,
                project=str(node.project),
                new_key=new_key,
                unreached=unreached,
            )
        )
    return found


def health(
    nodes: str | Iterable[str] | None = None,
    cluster: str | Cluster | None = None,
    *,
    save: bool = True,
) -> ClusterHealth:
    """Return the health of the cluster; with `save` it is kept in the experiments folder, too."""
    from .health.probe import probe
    from .hosts.fleet import Fleet

    chosen = open_cluster(cluster, nodes)
    with Fleet.of(chosen) as fleet, loading("health.report"):
        answers = probe(fleet, chosen)
    from .health.report import judge_cluster

    found = judge_cluster(chosen, answers)
    if save:
        _keep(chosen, found)
    return found


def _keep(cluster: Cluster, found: ClusterHealth) -> None:
    from .jobs.log import open_log

    open_experiments(cluster).save_cluster_state(found)
    log = open_log("health", cluster)
    log.info(
        "%s: %s in %.1f s",
        cluster.name,
        "fit" if found.fit else "not fit",
        found.seconds,
    )
    for node, check in found.faults:
        log.warning("%s: %s: %s", node, check.name, check.value)


def time_all_reduce(
    nodes: str | Iterable[str] | None = None, cluster: str | Cluster | None = None
) -> list[dict[str, Any]]:
    """Time an all-reduce across the nodes with a short job; an object a measurement. Raises JobFailed."""
    from .launch.network_test import measure

    return measure(open_cluster(cluster, nodes))


def sync_envs(
    nodes: str | Iterable[str] | None = None,
    cluster: str | Cluster | None = None,
    *,
    offline: bool = False,
    tell: Callable[[str, Progress], None] = lambda _node, _progress: None,
) -> dict[str, Synced | UgroError]:
    """Bring the training environment to every node: {node: what was done, or why it is still behind}.

    `tell` is told how each node gets on. `fault_of_sync` makes one error of the answer.
    """
    from .environments.sync import sync
    from .hosts.fleet import Fleet

    whole = open_cluster(cluster)
    chosen = open_cluster(whole, nodes)
    with Fleet.of(chosen) as fleet:
        return sync(
            fleet, whole, tell, {node.name for node in chosen.nodes}, offline=offline
        )


def fault_of_sync(results: Mapping[str, Synced | UgroError]) -> UgroError | None:
    """Return one error for all that a sync has left behind, None where the nodes are even."""
    from .environments.sync import fault_of

    return fault_of(results)


def survey_envs(
    nodes: str | Iterable[str] | None = None, cluster: str | Cluster | None = None
) -> dict[str, State | UgroError]:
    """Return what training environment each node has and whether it is behind; change nothing."""
    from .environments.sync import survey
    from .hosts.fleet import Fleet

    whole = open_cluster(cluster)
    chosen = open_cluster(whole, nodes)
    with Fleet.of(chosen) as fleet:
        return survey(fleet, whole, {node.name for node in chosen.nodes})


# ---- run ----


class LaunchOptions(TypedDict, total=False):
    """What a launch may be told. What is left out comes from the job to resume, or from the cluster file."""

    model: str | None
    dataset: str | None
    epochs: int | None
    learning_rate: float | None
    script: str | None  # in the scripts folder
    args: str | None  # more arguments for the script, quoted as for a shell
    settings: Iterable[str]  # SECTION.KEY=VALUE
    env: Mapping[str, str] | Iterable[str]  # or KEY=VALUE
    resume: str | None  # the job to go on from
    max_restarts: int
    min_nodes: int | None
    sync: bool
    force: bool
    nodes: str | Iterable[str] | None
    cluster: str | Cluster | None


def launch(name: str | None = None, **options: Unpack[LaunchOptions]) -> Experiment:
    """Submit a job and return it; its agent runs it."""
    from .launch.submit import submit

    wanted, chosen = spec(name, **options)
    return submit(wanted, chosen)


def dry_run(name: str | None = None, **options: Unpack[LaunchOptions]) -> Rehearsal:
    """Return what a launch would find and do now; nothing is written anywhere. Raises NotFit."""
    from .launch.dry_run import rehearse

    return rehearse(*spec(name, **options))


def spec(
    name: str | None = None, **options: Unpack[LaunchOptions]
) -> tuple[JobSpec, Cluster]:
    """Return what a launch would be, and the cluster it would run on. Raises UsageError and JobNotFound.

    A job without a name is called after its script.
    """
    from .launch.spec import draft, spec_from

    chosen = open_cluster(options.get("cluster"), options.get("nodes"))
    script, resume = options.get("script"), options.get("resume")
    if name is None and resume is None:
        name = Path(script or chosen.training.script).stem
    env = options.get("env", ())
    wanted = spec_from(
        chosen,
        name=name,
        resume=resume,
        script=script,
        args=options.get("args"),
        env=[f"{key}={value}" for key, value in env.items()]
        if isinstance(env, Mapping)
        else list(env),
        sets=list(options.get("settings", ())),
        flags={
            key: options.get(key)
            for key in ("model", "dataset", "epochs", "learning_rate")
        },
        force=options.get("force", False),
        sync=options.get("sync", True),
        max_restarts=options.get("max_restarts", 0),
        min_nodes=options.get("min_nodes"),
    )
    draft(wanted, chosen)
    return wanted, chosen


def follow(
    job: str | Experiment, cluster: str | Cluster | None = None
) -> Iterator[Event | Line | Metrics | JobState | None]:
    """Yield what happens to a job, from its beginning to its end; None when nothing came for a moment."""
    from .jobs.experiments import Experiments
    from .jobs.watch import watch

    experiment = find(job, cluster)
    return watch(Experiments(experiment.folder.parent), experiment)


def wait(job: str | Experiment, cluster: str | Cluster | None = None) -> JobState:
    """Wait for a job's end and return its last state, whatever that is."""
    experiment = find(job, cluster)
    for _ in follow(experiment):
        pass
    return experiment.state()


def stop(
    job: str | Experiment,
    cluster: str | Cluster | None = None,
    *,
    give_up: bool = False,
) -> JobState:
    """Stop a job and return its last state when every node has shown that nothing of it is left.

    With `give_up` a node that cannot be reached is not waited for. Raises UgroError where the job has ended already,
    and StopUnproven where the proof does not come; its agent goes on asking.
    """
    from .jobs.stop_request import StopRequest

    experiment = stoppable(job, cluster)
    request = StopRequest(experiment, give_up=give_up)
    for _ in follow(experiment):
        if request.overdue:
            raise StopUnproven(
                f"{request.unproven('no proof yet')} after {request.patience_seconds:.0f} s; the agent goes on asking"
            )
    return experiment.state()


def stoppable(
    job: str | Experiment, cluster: str | Cluster | None = None
) -> Experiment:
    """Return the job, unless it has ended: then UgroError is raised."""
    experiment = find(job, cluster)
    phase = experiment.state().phase
    if phase.finished:
        raise UgroError(
            f"{experiment.job_id} has ended already ({phase}); there is nothing to stop"
        )
    return experiment


# ---- look ----


def status(
    cluster: str | Cluster | None = None, *, limit: int | None = 20
) -> list[JobLine]:
    """Return the newest jobs, the newest first; None for all of them."""
    from .reports.status import all_jobs

    return all_jobs(open_experiments(cluster), limit=limit)


def job_report(
    job: str | Experiment, cluster: str | Cluster | None = None, *, live: bool = False
) -> JobReport:
    """Return everything about one job; with `live` also what its nodes say now."""
    from .reports.status import one_job

    return one_job(find(job, cluster), live=live)


def wake_agent(cluster: str | Cluster | None = None) -> str | None:
    """Start an agent where jobs are unfinished and none lives; return why that could not be done."""
    from .jobs.agent_process import try_agent

    experiments = open_experiments(cluster)
    return try_agent(experiments) if experiments.unfinished() else None


def logs(
    job: str | Experiment,
    cluster: str | Cluster | None = None,
    *,
    rank: int | None = None,
    lines: int = 50,
    ends: Mapping[int, int] | None = None,
) -> dict[int, list[str]]:
    """Return {rank: its last lines}; `ends` says in bytes where each log ends.

    Raises UsageError for a rank that is none.
    """
    from .reports.logs import log_tails

    return log_tails(find(job, cluster), rank, lines, ends)


def log_ends(
    job: str | Experiment, cluster: str | Cluster | None = None
) -> dict[int, int]:
    """Return {rank: bytes of its log that are whole lines}."""
    from .jobs.tail import end_of_lines

    return {
        number: end_of_lines(path) for number, path in find(job, cluster).logs().items()
    }


def results(job: str | Experiment, cluster: str | Cluster | None = None) -> Results:
    """Return what came of a job: the loss curve, metrics, throughput, cards, restarts, checkpoints."""
    from .reports.results import results

    return results(find(job, cluster))


def gather(
    job: str | Experiment,
    cluster: str | Cluster | None = None,
    *,
    verify: bool = False,
    dry_run: bool = False,
    tell: Callable[[str, int], None] = lambda _node, _percent: None,
) -> Gathering:
    """Fetch a job's outputs from the nodes, also while it runs; with `dry_run` only say from where.

    With `verify` contents are compared, not only sizes and times. `tell` is told how far each node is, in percent.
    """
    experiment = find(job, cluster)
    cleaned: tuple[str, ...] = experiment.state().cleaned
    if not dry_run:
        from .outputs.fetch import gather_again

        cleaned = tuple(gather_again(experiment, tell, verify=verify))
    nodes = tuple(node for node in experiment.record().nodes if node not in cleaned)
    return Gathering(
        job_id=experiment.job_id,
        folder=str(experiment.folder),
        nodes=nodes,
        cleaned=cleaned,
    )


# ---- the cluster ----


def clean(
    names: Iterable[str] = (),
    nodes: str | Iterable[str] | None = None,
    cluster: str | Cluster | None = None,
    *,
    older_than_seconds: float = 0.0,
    keep_last: int = 0,
    at_home: bool = False,
    dry_run: bool = False,
) -> tuple[Cleaning, list[UgroError]]:
    """Free the disks of jobs that are over and gathered; what was removed, and the errors of nodes not asked.

    Without `names` all jobs are looked at. With `at_home` old checkpoints here go, too. Raises JobNotFound.
    """
    from .outputs.clean import Wish, clean

    chosen = open_cluster(cluster, nodes)
    wish = Wish(
        names=tuple(names),
        older_than_seconds=older_than_seconds,
        keep_last=keep_last,
        at_home=at_home,
        dry_run=dry_run,
    )
    return clean(open_experiments(chosen), chosen, wish)


def reset(
    nodes: str | Iterable[str] | None = None, cluster: str | Cluster | None = None
) -> dict[str, list[Process] | HostError]:
    """End everything of UGRO on the nodes: {node: the processes ended there, or why it could not be told}.

    Raises StopUnproven where something would not end.
    """
    from .backends.ssh.reset import reset

    return reset(open_cluster(cluster, nodes))


# ---- start-up ----


@contextlib.contextmanager
def loading(*modules: str) -> Iterator[None]:
    """Load modules of the package while others are waited for."""

    def load() -> None:
        for module in modules:
            importlib.import_module(f"{__package__}.{module}")

    thread = threading.Thread(target=load, name="loading")
    thread.start()
    try:
        yield
    finally:
        thread.join()
