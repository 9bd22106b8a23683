"""The collection of UGRO's tasks: what `inv` and `ugro` offer, and what somebody's own tasks.py may take in."""

import atexit
import gc

from invoke.collection import Collection

from .attach import attach
from .clean import clean
from .gather import gather
from .health import health
from .init import init
from .launch import launch
from .logs import logs
from .reset import reset
from .results import results
from .status import status
from .stop import stop
from .sync_envs import sync_envs

# A command that ends need not look for garbage any more: that took 30 ms of the 300 of one that knows SSH.
atexit.register(gc.freeze)

ns = Collection(
    init,
    health,
    sync_envs,
    launch,
    attach,
    stop,
    status,
    logs,
    results,
    gather,
    clean,
    reset,
)
# The key is there so that Invoke reads INVOKE_UGRO_CLUSTER.
ns.configure({"ugro": {"cluster": None}})
