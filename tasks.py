"""What `inv` reads in the checkout: UGRO's tasks, and those for who works on UGRO itself."""

from invoke.collection import Collection

from dev.tasks import chaos, check, simulate, test
from ugro_tasks.cli.collection import ns as shipped

__all__ = ["ns"]

ns = Collection(
    *shipped.tasks.values(), *shipped.collections.values(), check, test, chaos, simulate
)
ns.configure(shipped.configuration())
