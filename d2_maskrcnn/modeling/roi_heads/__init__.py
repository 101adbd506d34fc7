"""Box head and mask head on pooled region features."""
