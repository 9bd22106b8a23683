"""UGRO: a few machines with one GPU each train together, over plain SSH. Here is the collection of its tasks."""

import atexit
import gc

from invoke.collection import Collection

# Not by the name of `ugro_tasks.cluster`, which it would hide.
from .commands import cluster as machines
from .commands import environments, jobs, launch

# A command that ends need not look for garbage any more: that took 30 ms of the 300 of one that knows SSH.
atexit.register(gc.freeze)

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
