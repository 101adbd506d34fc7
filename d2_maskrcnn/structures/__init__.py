"""Detections and instance masks."""
