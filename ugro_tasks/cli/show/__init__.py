"""What a command prints: a file for each command, of its name."""
