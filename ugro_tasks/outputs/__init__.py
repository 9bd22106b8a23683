"""What ranks wrote: fetched here, and removed where it is not needed any more."""
