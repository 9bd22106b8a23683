"""What one types: a file for each command, of its name."""
