"""What is known of jobs, put together to be shown."""
