"""Find the flaws of a dataset: structure, ids, boxes, masks and images."""
