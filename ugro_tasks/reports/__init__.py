"""Reports about jobs, as data for the commands."""
