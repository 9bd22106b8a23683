"""The cluster file cluster.yaml: read, checked, and made into a `Cluster`."""
