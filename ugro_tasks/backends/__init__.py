"""The ways to run a job on machines, a folder each."""
