import numpy as np

from d2_maskrcnn.engine.data_summary import describe_data, summarize


def record(rle=False):
    """An image of 640x480 with three squares of 120 pixels and a crowd."""
    mask = {"size": [480, 640], "counts": "x"} if rle else [[0, 0, 120, 0, 120, 120]]
    annotation = {"bbox": [0, 0, 120, 120], "segmentation": mask, "category_id": 0}
    crowd = {**annotation, "iscrowd": 1, "segmentation": {}}
    return {"height": 480, "width": 640, "annotations": [annotation] * 3 + [crowd]}


def test_summary_of_nothing():
    summary = summarize([])
    assert (summary.images, summary.objects, summary.most_objects, len(summary.sides)) == (0, 0, 0, 0)


def test_summary():
    empty = {"height": 10, "width": 10, "annotations": []}
    summary = summarize([record(), record(), empty])
    assert (summary.images, summary.images_with_objects, summary.objects, summary.most_objects) == (3, 2, 6, 3)
    assert not summary.uses_rle and summarize([record(rle=True)]).uses_rle
    np.testing.assert_allclose(summary.sides, 0.25)
    np.testing.assert_allclose(summary.longest, 640 / 480)


def test_description():
    lines = describe_data({"train": summarize([record()] * 2), "val": summarize([record(rle=True)])}, ["cat"])
    assert lines == [
        "train  2 images, 6 objects with polygons",
        "val    1 images, 3 objects with RLE masks",
        "classes cat",
    ]
