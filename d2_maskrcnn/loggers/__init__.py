"""Log a training to experiment trackers."""
