"""The page of a dataset's flaws: examples, ids and statistics, for the empty case and for damaged entries."""

import re

import numpy as np
import pytest

from d2_maskrcnn import UserError
from d2_maskrcnn.data import check
from d2_maskrcnn.data.coco.writing import write_coco_json
from d2_maskrcnn.inspection.flaws_page import write_flaws_page


def page_of(data, folder):
    write_coco_json(folder / "a.json", data)
    write_flaws_page(check(folder / "a.json"), folder / "page.html")
    return (folder / "page.html").read_text()


@pytest.fixture
def data(tiny_shapes):
    square = [[8, 8, 20, 8, 20, 20, 8, 20]]
    entry = {"category_id": 1, "bbox": [8, 8, 12, 12], "area": 144, "iscrowd": 0, "segmentation": square}
    return {
        "images": [
            {"id": n, "file_name": str(tiny_shapes / "train" / f"00000{n}.png"), "width": 64, "height": 64}
            for n in range(1, 4)
        ],
        "categories": [{"id": 1, "name": "<q>"}],
        "annotations": [{"id": n, "image_id": n, **entry} for n in range(1, 4)],
    }


def test_an_empty_dataset(tmp_path):
    page = page_of({"images": [], "annotations": [], "categories": []}, tmp_path)
    assert "error" in page and "0 images, 0 annotations" in page
    assert "Objects per category" in page


def test_examples_and_ids(data, tmp_path):
    data["annotations"][1]["segmentation"] = [[0.1, 0.1, 0.3, 0.1, 0.3, 0.3]]
    page = page_of(data, tmp_path)
    assert "1 annotation with polygons in fractions of the image&#39;s size" in page
    assert "id 2 in" in page and page.count("data:image/jpeg") == 1
    assert "<q>" not in page and "&lt;q&gt;" in page
    assert not re.findall(r'(?:src|href)="https?:', page)  # no network


@pytest.mark.parametrize(
    "changes",
    [
        {"bbox": [float("nan"), 1, 2, 3]},
        {"bbox": [-1e300, 8, 1e300, 12]},
        {"bbox": [200, 200, 12, 12]},
        {"segmentation": [[1, 2, 3]]},
        {"segmentation": [["x", 2, 3, 4, 5, 6]]},
        {"segmentation": "abc"},
        {"segmentation": [[8, 8, 1e300, 8, 20, 20]]},
        {"segmentation": {"size": [64, 64], "counts": "zzz"}},
        {"segmentation": {"size": None, "counts": []}},
        {"image_id": []},
    ],
)
def test_damaged_entries_are_drawn_as_far_as_possible(data, tmp_path, changes):
    data["annotations"][0].update(changes)
    assert "error" in page_of(data, tmp_path)


def test_a_page_that_cannot_be_written(data, tmp_path):
    write_coco_json(tmp_path / "a.json", data)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        write_flaws_page(check(tmp_path / "a.json"), tmp_path / "file" / "page.html")


def test_statistics_are_those_of_the_dataset(data, tmp_path):
    from d2_maskrcnn.inspection.data import inspect_table

    write_coco_json(tmp_path / "a.json", data)
    report = check(tmp_path / "a.json")
    findings = inspect_table(report.cfg, "a", report.parts[0].findings.table)
    assert (findings.images, findings.objects, findings.categories) == (3, 3, {"<q>": 3})
    np.testing.assert_array_equal(findings.objects_per_image, [1, 1, 1])
    np.testing.assert_allclose(findings.sqrt_areas, 12 * 800 / 64)
