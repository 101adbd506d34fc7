"""Read images and frames."""
