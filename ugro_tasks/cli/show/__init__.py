"""The output of the commands: one file per command, named after it."""
