"""Write datasets for annotation tools: CVAT's XML and Label Studio's tasks with predictions to correct."""

import json
from collections import Counter
from typing import Any
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

import numpy as np

from d2_maskrcnn.data.formats import shapes
from d2_maskrcnn.data.formats.brush import encode_brush
from d2_maskrcnn.data.formats.cvat import CROWD as CVAT_CROWD
from d2_maskrcnn.data.formats.dataset import Annotation, Dataset, ImageFile
from d2_maskrcnn.data.formats.label_studio import CONFIG
from d2_maskrcnn.data.formats.label_studio import CROWD as STUDIO_CROWD
from d2_maskrcnn.data.formats.output import Output, target_names
from d2_maskrcnn.errors import printable
from d2_maskrcnn.structures.masks import decode_segmentation


def write_cvat(dataset: Dataset, output: Output, notes: Counter[str]) -> None:
    """Add ``annotations.xml`` in the form "CVAT for images 1.1", and ``images/*``, to create a task from."""
    categories = {category.id: category.name for category in dataset.categories}
    names, of_images = target_names(dataset), dataset.annotations_of_images()
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    task = SubElement(SubElement(root, "meta"), "task")
    labels = SubElement(task, "labels")
    for name in categories.values():
        _cvat_label(labels, name)
    for index, image in enumerate(dataset.images):
        name = names[image.id].removeprefix(f"{image.split}/" if image.split else "")
        element = SubElement(root, "image", id=str(index), name=name)
        element.attrib |= {"width": str(image.width), "height": str(image.height)}
        if image.split:
            element.set("subset", image.split)
        for number, annotation in enumerate(of_images[image.id], start=1):
            label = printable(categories[annotation.category_id])
            for shape in _cvat_shapes(annotation, label, image, number):
                element.append(shape)
        output.images[f"images/{names[image.id]}"] = image
    ElementTree.indent(root)
    output.add("annotations.xml", ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _cvat_label(labels: Element, name: str) -> None:
    label = SubElement(labels, "label")
    SubElement(label, "name").text = printable(name)
    attribute = SubElement(SubElement(label, "attributes"), "attribute")
    values = {"name": CVAT_CROWD, "mutable": "False", "input_type": "checkbox", "default_value": "false"}
    for key, value in {**values, "values": "false"}.items():
        SubElement(attribute, key).text = value


def _cvat_shapes(annotation: Annotation, label: str, image: ImageFile, number: int) -> list[Element]:
    """Return one polygon per contour, in one group, or a mask for what is stored as an RLE."""
    common = {"label": label, "source": "auto", "occluded": "0", "z_order": "0"}
    if isinstance(annotation.segmentation, list):
        elements = [Element("polygon", {**common, "points": _points(each)}) for each in annotation.segmentation]
        if len(elements) > 1:
            for element in elements:
                element.set("group_id", str(number))
    else:
        mask, (x, y) = shapes.mask_of(annotation.segmentation, image)
        place = {"left": str(x), "top": str(y), "width": str(mask.shape[1]), "height": str(mask.shape[0])}
        elements = [Element("mask", {**common, "rle": _runs(mask), **place})]
    for element in elements:
        SubElement(element, "attribute", name=CVAT_CROWD).text = "true" if annotation.iscrowd else "false"
    return elements


def _points(polygon: list[float]) -> str:
    return ";".join(f"{x:.10g},{y:.10g}" for x, y in np.reshape(polygon, (-1, 2)).tolist())


def _runs(mask: np.ndarray) -> str:
    """Encode a mask (h, w) as CVAT does: lengths of runs of 0 and 1, row by row, beginning with 0."""
    flat = mask.ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    runs = np.diff(np.concatenate(([0], changes, [flat.size]))).tolist()
    return ", ".join(map(str, [0, *runs] if flat[0] else runs))


def write_label_studio(dataset: Dataset, output: Output, notes: Counter[str]) -> None:
    """Add ``tasks.json`` with predictions, ``labeling_config.xml`` for the project, and ``images/*``.

    Images are addressed as local files relative to the output folder (``LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT``).
    """
    categories = {category.id: category.name for category in dataset.categories}
    names, of_images = target_names(dataset), dataset.annotations_of_images()
    tasks: list[dict[str, Any]] = []
    for image in dataset.images:
        found = of_images[image.id]
        result = [
            _studio_result(number, annotation, categories[annotation.category_id], image)
            for number, annotation in enumerate(found, start=1)
        ]
        scores = [annotation.score for annotation in found if annotation.score is not None]
        prediction: dict[str, Any] = {"model_version": "d2_maskrcnn", "result": result}
        if scores:
            prediction["score"] = round(float(np.mean(scores)), 5)
        data = {"image": f"/data/local-files/?d=images/{names[image.id]}", "split": image.split}
        tasks.append({"id": len(tasks) + 1, "data": data, "predictions": [prediction]})
        output.images[f"images/{names[image.id]}"] = image
    output.add("tasks.json", json.dumps(tasks, ensure_ascii=False))
    output.add(CONFIG, _studio_config(list(categories.values())))


def _studio_result(number: int, annotation: Annotation, label: str, image: ImageFile) -> dict[str, Any]:
    """Return a polygon, or a brush mask for what has several contours or is stored as an RLE."""
    segmentation = annotation.segmentation
    common: dict[str, Any] = {
        "id": f"object{number}",
        "to_name": "image",
        "original_width": image.width,
        "original_height": image.height,
        "image_rotation": 0,
    }
    if annotation.score is not None:
        common["score"] = round(annotation.score, 5)
    if annotation.iscrowd:
        common["meta"] = {STUDIO_CROWD: True}
    if isinstance(segmentation, list) and len(segmentation) == 1:
        points = np.reshape(segmentation[0], (-1, 2)) * (100 / image.width, 100 / image.height)
        value: dict[str, Any] = {"points": points.round(8).tolist(), "closed": True, "polygonlabels": [label]}
        return {**common, "type": "polygonlabels", "from_name": "polygon", "value": value}
    mask = decode_segmentation(segmentation, image.height, image.width)
    value = {"format": "rle", "rle": encode_brush(mask), "brushlabels": [label]}
    return {**common, "type": "brushlabels", "from_name": "brush", "value": value}


def _studio_config(names: list[str]) -> str:
    """Return the labeling interface of a project with polygons and brush masks."""
    view = Element("View")
    SubElement(view, "Image", name="image", value="$image", zoom="true", zoomControl="true")
    for kind, name in (("PolygonLabels", "polygon"), ("BrushLabels", "brush")):
        labels = SubElement(view, kind, name=name, toName="image")
        for each in names:
            SubElement(labels, "Label", value=printable(each))
    ElementTree.indent(view)
    return ElementTree.tostring(view, encoding="unicode")


TOOL_WRITERS = {"cvat": write_cvat, "label-studio": write_label_studio}
