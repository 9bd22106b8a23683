"""What nodes tell of themselves, judged."""
