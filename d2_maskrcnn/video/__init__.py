"""Detections shown in images, videos, streams and webcam images: sources, pipeline and outputs."""
