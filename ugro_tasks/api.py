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

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypedDict, Unpack

if TYPE_CHECKING:
    from .cluster.model import Cluster
    from .environments.sync import Progress, State, Synced
    from .errors import HostError, UgroError
    from .health.init import FirstTime
    from .health.report import ClusterHealth
    from .hosts.answers import Process
    from .jobs.adoption import Adoption
    from .jobs.experiment import Experiment
    from .jobs.experiments import Experiments
    from .jobs.spec import JobSpec
    from .jobs.state import Event, JobState
    from .jobs.watch import Line
    from .jobs.watch import Progress as Metrics
    from .launch.dry_run import Rehearsal
    from .outputs.clean import Cleaning
    from .outputs.gather import Gathering
    from .reports.results import Results
    from .reports.status import JobLine, JobReport

    Nodes = str | Iterable[str] | None
    AnyCluster = str | Cluster | None
    AnyJob = str | Experiment


# ---- the cluster and its jobs ----


def open_cluster(cluster: AnyCluster = None, nodes: Nodes = None) -> Cluster:
    """Return the chosen cluster, with only these nodes. Raises ClusterFileError and UsageError."""
    from .cluster.file import load_cluster

    if cluster is None or isinstance(cluster, str):
        cluster = load_cluster(cluster)
    return cluster.select(nodes)


def open_experiments(cluster: AnyCluster = None) -> Experiments:
    """Return the experiments folder of the chosen cluster."""
    from .jobs.experiments import Experiments

    return Experiments(open_cluster(cluster).experiments)


def find(job: AnyJob, cluster: AnyCluster = None) -> Experiment:
    """Return the newest job of this name, or the one with this id. Raises JobNotFound."""
    return open_experiments(cluster).find(job) if isinstance(job, str) else job


# ---- start here ----


def init(
    nodes: Nodes = None,
    cluster: AnyCluster = None,
    *,
    agree: Callable[[str], bool] | None = None,
    tell: Callable[[str], None] = lambda _message: None,
) -> ClusterHealth:
    """Record unknown host keys, make the folders, and return the health of the cluster after that.

    `agree` is asked before a key is recorded, None agrees to all; `tell` is told of each. Raises HostKeyUnknown where
    it says no.
    """
    from .health.init import prepare

    return prepare(open_cluster(cluster, nodes), agree, tell)


def first_time(nodes: Nodes = None, cluster: AnyCluster = None) -> list[FirstTime]:
    """Return what `init` would do, and do nothing."""
    from .health.init import first_time

    return first_time(open_cluster(cluster, nodes))


def health(
    nodes: Nodes = None,
    cluster: AnyCluster = None,
    *,
    deep: bool = False,
    save: bool = True,
) -> ClusterHealth:
    """Return the health of the cluster; with `save` it is kept in the experiments folder, too.

    With `deep`, rsync's own connection is tried although it worked before.
    """
    from .health.check import check, keep

    chosen = open_cluster(cluster, nodes)
    found = check(chosen, deep=deep)
    if save:
        keep(chosen, found)
    return found


def time_all_reduce(
    nodes: Nodes = None, cluster: AnyCluster = None
) -> list[dict[str, Any]]:
    """Time an all-reduce across the nodes with a short job; an object a measurement. Raises JobFailed."""
    from .launch.deep_health import measure

    return measure(open_cluster(cluster, nodes))


def sync_envs(
    nodes: Nodes = None,
    cluster: AnyCluster = None,
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
    names = {node.name for node in chosen.nodes}
    with Fleet.of(chosen) as fleet:
        return sync(fleet, whole, tell, names, offline=offline)


def fault_of_sync(results: Mapping[str, Synced | UgroError]) -> UgroError | None:
    """Return one error for all that a sync has left behind, None where the nodes are even."""
    from .environments.sync import fault_of

    return fault_of(results)


def survey_envs(
    nodes: Nodes = None, cluster: AnyCluster = None
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
    epochs: int | str | None  # a number, or as it was typed
    learning_rate: float | str | None
    script: str | None  # in the scripts folder
    args: str | None  # more arguments for the script, quoted as for a shell
    settings: Iterable[str]  # SECTION.KEY=VALUE
    env: Mapping[str, str] | Iterable[str]  # or KEY=VALUE
    resume: str | None  # the job to go on from
    max_restarts: int
    min_nodes: int | None
    sync: bool
    force: bool
    nodes: Nodes
    cluster: AnyCluster


def launch(name: str | None = None, **options: Unpack[LaunchOptions]) -> Experiment:
    """Submit a job and return it; its agent runs it."""
    from .launch.submit import submit

    return submit(*spec(name, **options))


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

    chosen = open_cluster(options.pop("cluster", None), options.pop("nodes", None))
    wanted = spec_from(chosen, name, **options)
    draft(wanted, chosen)
    return wanted, chosen


def follow(
    job: AnyJob, cluster: AnyCluster = None
) -> Iterator[Event | Line | Metrics | JobState | None]:
    """Yield what happens to a job, from its beginning to its end; None when nothing came for a moment."""
    from .jobs.experiments import Experiments
    from .jobs.watch import watch

    experiment = find(job, cluster)
    return watch(Experiments(experiment.folder.parent), experiment)


def wait(job: AnyJob, cluster: AnyCluster = None) -> JobState:
    """Wait for a job's end and return its last state, whatever that is."""
    experiment = find(job, cluster)
    for _ in follow(experiment):
        pass
    return experiment.state()


def stop(job: AnyJob, cluster: AnyCluster = None, *, give_up: bool = False) -> JobState:
    """Stop a job and return its last state when every node has shown that nothing of it is left.

    With `give_up` a node that cannot be reached is not waited for. Raises UgroError where the job has ended already,
    and StopUnproven where the proof does not come; its agent goes on asking.
    """
    from .jobs.stop_request import stop

    return stop(find(job, cluster), give_up=give_up)


def is_job_id(name: str) -> bool:
    """Return whether a name is a whole job id: its name, and a time stamp."""
    from .jobs.experiment import is_id

    return is_id(name)


def stoppable(job: AnyJob, cluster: AnyCluster = None) -> Experiment:
    """Return the job, unless it has ended: then UgroError is raised."""
    from .jobs.stop_request import stoppable

    return stoppable(find(job, cluster))


def stop_is_asked(job: AnyJob, cluster: AnyCluster = None) -> bool:
    """Return whether a request to stop the job can be read in its folder."""
    from .errors import RecordError

    try:
        return find(job, cluster).stop_request() is not None
    except (OSError, RecordError):
        return False


def adoption(job: AnyJob, cluster: AnyCluster = None) -> Adoption:
    """Return what a job that this user did not launch here would run, and where; nothing is done."""
    from .jobs.adoption import would_adopt

    return would_adopt(find(job, cluster))


def adopt(
    job: AnyJob, cluster: AnyCluster = None, *, shown: Adoption | None = None
) -> Adoption:
    """Take over a job that this user did not launch here, and return what that means.

    From now on it counts as launched by this user: an agent goes on with it if it is not over. Raises UgroError if it
    is this user's already, and RecordError if it is no longer what `adoption` has shown.
    """
    from .jobs.adoption import adopt, would_adopt
    from .jobs.agent_process import ensure_agent
    from .jobs.experiments import Experiments

    experiment = find(job, cluster)
    found = shown or would_adopt(experiment)
    adopt(experiment, found)
    if not found.over:
        ensure_agent(Experiments(experiment.folder.parent))
    return found


# ---- look ----


def status(cluster: AnyCluster = None, *, limit: int | None = 20) -> list[JobLine]:
    """Return the newest jobs, the newest first; None for all of them."""
    from .reports.status import all_jobs

    return all_jobs(open_experiments(cluster), limit=limit)


def job_report(
    job: AnyJob, cluster: AnyCluster = None, *, live: bool = False
) -> JobReport:
    """Return everything about one job; with `live` also what its nodes say now."""
    from .reports.status import one_job

    return one_job(find(job, cluster), live=live)


def wake_agent(cluster: AnyCluster = None) -> tuple[str | None, dict[str, str]]:
    """Start an agent where jobs of this user are under way and none lives.

    Returns why that could not be done, and {job id: why no agent of this user goes on with it}.
    """
    from .jobs.agent_process import try_agent

    experiments = open_experiments(cluster)
    ours, left_alone = experiments.to_supervise()
    return try_agent(experiments) if ours else None, left_alone


def logs(
    job: AnyJob,
    cluster: AnyCluster = None,
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


def log_ends(job: AnyJob, cluster: AnyCluster = None) -> dict[int, int]:
    """Return {rank: bytes of its log that are whole lines}."""
    from .reports.logs import log_ends

    return log_ends(find(job, cluster))


def results(job: AnyJob, cluster: AnyCluster = None) -> Results:
    """Return what came of a job: the loss curve, metrics, throughput, cards, restarts, checkpoints."""
    from .reports.results import results

    return results(find(job, cluster))


def gather(
    job: AnyJob,
    cluster: AnyCluster = None,
    *,
    verify: bool = False,
    leave_links: bool = False,
    dry_run: bool = False,
    tell: Callable[[str, int], None] = lambda _node, _percent: None,
) -> Gathering:
    """Fetch a job's outputs from the nodes, also while it runs; with `dry_run` only say from where.

    With `verify` contents are compared, not only sizes and times. With `leave_links` the job counts as gathered
    without what links out of its outputs lead to. `tell` is told how far each node is, in percent.
    """
    from .outputs.gather import gather, would_gather

    experiment = find(job, cluster)
    if dry_run:
        return would_gather(experiment)
    return gather(experiment, tell, verify=verify, leave_links=leave_links)


# ---- the cluster ----


def clean(
    names: Iterable[str] = (),
    nodes: Nodes = None,
    cluster: AnyCluster = None,
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


def stop_on_nodes(
    job_id: str, cluster: AnyCluster = None
) -> dict[str, list[Process] | HostError]:
    """Stop a job whose record is lost or cannot be written, by what the nodes know: {node: the processes ended there}.

    Instead of them there is the error of a node that could not be asked. Raises JobNotFound where no node has anything
    of it, and StopUnproven where something would not end.
    """
    from .backends.ssh.reset import reset
    from .errors import JobNotFound

    chosen = open_cluster(cluster)
    ended = reset(chosen, job_id, chosen.timeouts.stop_grace_seconds)
    if not any(ended.values()):
        raise JobNotFound(
            f"no job called {job_id!r} in {chosen.experiments}, and no node has anything of it"
        )
    return ended


def reset(
    nodes: Nodes = None, cluster: AnyCluster = None
) -> dict[str, list[Process] | HostError]:
    """End everything of UGRO on the nodes: {node: the processes ended there, or why it could not be told}.

    Raises StopUnproven where something would not end.
    """
    from .backends.ssh.reset import reset

    return reset(open_cluster(cluster, nodes))
