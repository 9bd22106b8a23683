"""UGRO: a few machines with one GPU each train together, over plain SSH. Here is the collection of its tasks."""

from invoke.collection import Collection

from .commands import cluster, develop, jobs, launch

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
if develop.in_checkout():
    ns.add_task(develop.check)
    ns.add_task(develop.test)
