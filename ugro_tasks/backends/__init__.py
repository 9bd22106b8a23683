"""What runs a job on machines; a folder for each way."""
