import csv

import numpy as np
import pytest

from d2_maskrcnn.evaluation.confusion_matrix import confusion_matrix, write_confusion_csv

CATEGORIES = [{"id": 7, "name": "b"}, {"id": 3, "name": "a"}]  # in the matrix a comes first, by its id


def ground_truth(*annotations):
    images = [{"id": 1, "height": 100, "width": 100}, {"id": 2, "height": 100, "width": 100}]
    return {"images": images, "categories": CATEGORIES, "annotations": list(annotations)}


def annotation(category, box, image=1, crowd=0):
    x, y, w, h = box
    polygon = [[x, y, x + w, y, x + w, y + h, x, y + h]]
    return {"image_id": image, "category_id": category, "bbox": box, "segmentation": polygon, "iscrowd": crowd}


def detection(category, box, score, image=1):
    return {"image_id": image, "category_id": category, "bbox": box, "score": score}


LEFT, RIGHT, FAR = [10, 10, 20, 20], [60, 10, 20, 20], [60, 60, 20, 20]


@pytest.mark.parametrize(
    ("annotations", "detections", "expected"),
    [
        ([], [], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
        ([annotation(3, LEFT)], [], [[0, 0, 1], [0, 0, 0], [0, 0, 0]]),  # false negative
        ([], [detection(7, LEFT, 0.9)], [[0, 0, 0], [0, 0, 0], [0, 1, 0]]),  # false positive
        ([annotation(3, LEFT)], [detection(3, LEFT, 0.9)], [[1, 0, 0], [0, 0, 0], [0, 0, 0]]),
        ([annotation(3, LEFT)], [detection(7, LEFT, 0.9)], [[0, 1, 0], [0, 0, 0], [0, 0, 0]]),  # wrong class
        ([annotation(3, LEFT)], [detection(3, LEFT, 0.4)], [[0, 0, 1], [0, 0, 0], [0, 0, 0]]),  # score too low
        ([annotation(3, LEFT)], [detection(3, LEFT, 0.9, image=2)], [[0, 0, 1], [0, 0, 0], [1, 0, 0]]),
        # The higher score is matched, in any order; the other one is a false positive.
        (
            [annotation(3, LEFT)],
            [detection(7, LEFT, 0.6), detection(3, LEFT, 0.9)],
            [[1, 0, 0], [0, 0, 0], [0, 1, 0]],
        ),
        # IoU of boxes shifted by 10 of 20 is 1/3; by 5 it is 0.6.
        ([annotation(3, LEFT)], [detection(3, [20, 10, 20, 20], 0.9)], [[0, 0, 1], [0, 0, 0], [1, 0, 0]]),
        ([annotation(3, LEFT)], [detection(3, [15, 10, 20, 20], 0.9)], [[1, 0, 0], [0, 0, 0], [0, 0, 0]]),
        # Detections inside a crowd are not counted.
        ([annotation(3, [0, 0, 50, 50], crowd=1)], [detection(7, LEFT, 0.9)], [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
        (
            [annotation(3, LEFT), annotation(7, RIGHT), annotation(7, FAR), annotation(3, LEFT, image=2)],
            [detection(3, LEFT, 0.9), detection(3, RIGHT, 0.8), detection(7, LEFT, 0.7, image=2)],
            [[1, 1, 0], [1, 0, 1], [0, 0, 0]],
        ),
    ],
)
def test_counts(annotations, detections, expected):
    assert confusion_matrix(ground_truth(*annotations), detections).tolist() == expected


def test_masks_are_compared_if_there_are_any():
    half = [[10, 10, 30, 10, 30, 18, 10, 18]]  # 8 of 20 rows, in the same box
    item = {**detection(3, LEFT, 0.9), "segmentation": half}
    assert confusion_matrix(ground_truth(annotation(3, LEFT)), [item]).tolist() == [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
    assert confusion_matrix(ground_truth(annotation(3, LEFT)), [item], iou_threshold=0.35)[0, 0] == 1


def test_rows_add_up_to_the_ground_truth():
    rng = np.random.default_rng(0)
    boxes = (rng.random((60, 4)) * 40 + 5).tolist()
    kinds = rng.choice([3, 7], 60).tolist()
    annotations = [annotation(kind, box) for kind, box in zip(kinds[:30], boxes[:30], strict=True)]
    detections = [detection(kind, box, 0.9) for kind, box in zip(kinds[30:], boxes[30:], strict=True)]
    matrix = confusion_matrix(ground_truth(*annotations), detections, iou_threshold=0.3)
    assert matrix.sum(axis=1)[:2].tolist() == [kinds[:30].count(3), kinds[:30].count(7)]
    assert matrix.sum(axis=0)[:2].tolist() == [kinds[30:].count(3), kinds[30:].count(7)]
    assert matrix[:2, :2].sum() > 0


def test_csv_marks_formulas_as_text_and_escapes_control_characters(tmp_path):
    names = ["=1+1", "+a", "-b", "@c", "line\nbreak", "\t=2", "tab\there", 'quo"te, comma', "Äpfel 🍎", "a-b"]
    write_confusion_csv(tmp_path / "new" / "matrix.csv", np.arange(121).reshape(11, 11), names)
    with open(tmp_path / "new" / "matrix.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    expected = ["'=1+1", "'+a", "'-b", "'@c", "line\\nbreak", "\\t=2", "tab\\there", 'quo"te, comma', "Äpfel 🍎", "a-b"]
    assert rows[0] == ["ground truth / predicted", *expected, "(background)"]
    assert [row[0] for row in rows[1:]] == rows[0][1:] and rows[-1][-1] == "120"
