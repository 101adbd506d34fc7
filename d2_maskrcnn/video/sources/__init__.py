"""Where images and frames come from."""
