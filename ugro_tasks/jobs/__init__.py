"""The records of jobs, and their experiment folders."""
