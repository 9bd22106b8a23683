"""Launching: from flags to a queued job."""
