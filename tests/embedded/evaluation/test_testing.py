import math

import pytest

from detectron2.config import get_cfg
from detectron2.evaluation import print_csv_format, verify_results
from detectron2.evaluation.testing import flatten_results_dict


@pytest.mark.parametrize(
    ("nested", "flat"),
    [({}, {}), ({"a": 1, "b": {"c": 2, "d": {"e": 3}}}, {"a": 1, "b/c": 2, "b/d/e": 3})],
)
def test_flatten(nested, flat):
    assert flatten_results_dict(nested) == flat


def test_csv_has_the_main_metrics(caplog):
    with caplog.at_level("INFO"):
        print_csv_format({"bbox": {"AP": 27.46346, "AP50": math.nan, "AP-cat": 1.0}, "speed": 3})
    assert [record.getMessage() for record in caplog.records] == [
        "copypaste: Task: bbox",
        "copypaste: AP,AP50",
        "copypaste: 27.4635,nan",
        "copypaste: speed=3",
    ]


@pytest.mark.parametrize(
    ("expected", "passes"),
    [
        ([], True),
        ([["bbox", "AP", 40.0, 0.5]], True),
        ([["bbox", "AP", 41.0, 0.5]], False),
        ([["bbox", "AP", 40.0, 0.5], ["segm", "AP", 1.0, 0.5]], False),
        ([["bbox", "none", 40.0, 0.5]], False),
        ([["bbox", "APs", 40.0, 1000.0]], False),
    ],
)
def test_verification(expected, passes, caplog):
    cfg = get_cfg()
    cfg.TEST.EXPECTED_RESULTS = expected
    results = {"bbox": {"AP": 40.2, "APs": math.nan}}
    if passes:
        assert verify_results(cfg, results) is True
    else:
        with pytest.raises(SystemExit) as stop:
            verify_results(cfg, results)
        assert stop.value.code == 1
        assert "expected" in caplog.text
