"""The records of jobs, and the experiment folder that they live in."""
