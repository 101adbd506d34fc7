"""Use a model inside other frameworks."""

SHARD_SIZE = 100  # images per file of a batch job
