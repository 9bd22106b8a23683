"""The collection of UGRO's tasks, for `inv`, for `ugro` and for other projects' tasks.py."""

import atexit
import gc

from invoke.collection import Collection

from .agent_adopt import adopt
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

# The garbage collection at exit took 30 ms of the 300 of a command that uses SSH.
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
    Collection("agent", adopt),
)
# Invoke reads INVOKE_UGRO_CLUSTER only if the key exists.
ns.configure({"ugro": {"cluster": None}})
