"""Process images, videos, streams and cameras: sources, pipeline and sinks."""
