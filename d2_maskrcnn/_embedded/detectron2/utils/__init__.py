"""Utilities: processes, events, logging, files, drawing, environment."""
