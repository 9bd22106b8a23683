"""What `inv` reads: UGRO's tasks."""

from ugro_tasks import ns

__all__ = ["ns"]
