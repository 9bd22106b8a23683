"""UGRO: a few machines with one GPU each train together, over plain SSH. Here is the collection of its tasks."""

from invoke.collection import Collection

# Not by the name of `ugro_tasks.cluster`, which it would hide.
from .commands import cluster as machines
from .commands import develop, environments, jobs, launch

ns = Collection(
    launch.launch,
    launch.attach,
    launch.stop,
    jobs.status,
    jobs.logs,
    jobs.results,
    jobs.gather,
    jobs.clean,
    machines.init,
    machines.health,
    environments.sync_envs,
    machines.reset,
)
if develop.in_checkout():
    ns.add_task(develop.check)
    ns.add_task(develop.test)
    ns.add_task(develop.chaos)
