"""Detections shown in pictures, videos, streams and webcam pictures: sources, pipeline and outputs."""
