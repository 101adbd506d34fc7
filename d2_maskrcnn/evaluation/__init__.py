"""Evaluation: COCO metrics, confusion matrix, validation loss, test-time augmentation."""
