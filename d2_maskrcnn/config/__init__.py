"""Define the plugin's config keys, read YAML files, and check values."""

from d2_maskrcnn.config.keys import COMPONENTS, add_d2_maskrcnn_config, use_d2_maskrcnn_components

__all__ = ["COMPONENTS", "add_d2_maskrcnn_config", "use_d2_maskrcnn_components"]
