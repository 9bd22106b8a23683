"""What a training is told: settings, batch sizes, and the memory that they need."""
