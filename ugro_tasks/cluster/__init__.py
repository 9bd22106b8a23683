"""cluster.yaml, read, checked and as data."""
