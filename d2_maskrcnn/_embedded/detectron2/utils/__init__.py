"""What the rest is built with: processes, events, logging, files, environment."""
