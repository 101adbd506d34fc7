"""ResNet and feature pyramid network."""
