"""Look inside the model, its weights and its data, step by step.

Each section has a function that computes numbers (``inspect_...``) and one that draws matplotlib figures
(``draw_...``). :func:`write_report` and ``python -m d2_maskrcnn.inspection`` write all of them as one web page.

    observation = observe(cfg, model, records_for(["image.jpg"], cfg)[0])
    inspect_anchors(observation).steps
    draw_result(observation)["result"]
"""

# ruff: noqa: F401 - the imports are for type checkers
import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from d2_maskrcnn.inspection.activations import channel_grid, draw_activations, inspect_activations, layer_tensors
    from d2_maskrcnn.inspection.anchors import draw_anchors, inspect_anchors
    from d2_maskrcnn.inspection.boxes import draw_boxes, inspect_boxes
    from d2_maskrcnn.inspection.data import draw_augmented, draw_data, inspect_data
    from d2_maskrcnn.inspection.masks import draw_masks, inspect_masks, mask_targets
    from d2_maskrcnn.inspection.observation import Observation, observe
    from d2_maskrcnn.inspection.records import class_names_of, records_for
    from d2_maskrcnn.inspection.report import Report, write_report
    from d2_maskrcnn.inspection.result import draw_result, inspect_result
    from d2_maskrcnn.inspection.weights import draw_overview, draw_weights, initial_weights, inspect_weights, read_state

# Imported at first use: ``python -m d2_maskrcnn.inspection`` imports this package before it can handle Ctrl-C.
_MODULES = {
    "activations": ("channel_grid", "draw_activations", "inspect_activations", "layer_tensors"),
    "anchors": ("draw_anchors", "inspect_anchors"),
    "boxes": ("draw_boxes", "inspect_boxes"),
    "data": ("draw_augmented", "draw_data", "inspect_data"),
    "masks": ("draw_masks", "inspect_masks", "mask_targets"),
    "observation": ("Observation", "observe"),
    "records": ("class_names_of", "records_for"),
    "report": ("Report", "write_report"),
    "result": ("draw_result", "inspect_result"),
    "weights": ("draw_overview", "draw_weights", "initial_weights", "inspect_weights", "read_state"),
}

__all__ = [name for names in _MODULES.values() for name in names]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(importlib.import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
