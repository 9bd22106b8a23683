"""The tasks: each loads, calls one or two services, and shows. Services are imported in the task that needs them,
so that `inv --list` and `inv status` start fast.
"""
