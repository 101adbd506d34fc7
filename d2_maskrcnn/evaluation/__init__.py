"""Evaluate a model: COCO metrics, confusion matrix, validation losses, test-time augmentation."""
