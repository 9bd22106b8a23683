"""The training environment on every node."""
