"""Hooks of a training."""
