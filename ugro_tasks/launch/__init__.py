"""From flags to a queued job."""
