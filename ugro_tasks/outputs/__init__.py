"""The outputs of ranks: fetched to the controller, and removed when no longer needed."""
