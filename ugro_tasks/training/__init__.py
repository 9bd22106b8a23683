"""The settings of a training, its batch sizes, and the memory needed for them."""
