"""Use a model inside other frameworks."""
