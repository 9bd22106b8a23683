"""UGRO: a few machines with one GPU each train together, over plain SSH. Here is the collection of its tasks."""

from invoke.collection import Collection

from .commands import cluster, jobs, launch

ns = Collection(
    launch.launch,
    launch.attach,
    launch.stop,
    jobs.status,
    jobs.logs,
    jobs.results,
    jobs.gather,
    cluster.init,
    cluster.health,
    cluster.reset,
)
