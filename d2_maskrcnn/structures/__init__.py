"""Detections and instance masks: the types that the model's output is converted to."""
