"""A few seeded inputs of the fuzzer (see CONTRIBUTING.md), and that the fuzzer notices what it looks for."""

from types import SimpleNamespace

import pytest

from d2_maskrcnn.errors import UserError
from tools.fuzz import checkpoints, coco, command_line, configs, harness, images, resume, videos

AREAS = {
    "coco": (coco, 150),
    "checkpoints": (checkpoints, 60),
    "configs": (configs, 40),
    "images": (images, 60),
    "videos": (videos, 40),
    "command_line": (command_line, 10),
    "resume": (resume, 3),
}


@pytest.mark.parametrize("area", AREAS)
def test_malformed_input_is_refused_or_read_right(area, tmp_path):
    module, count = AREAS[area]
    module.prepare(tmp_path)
    results = [harness.run_input(area, 1, index, tmp_path, lambda label: None) for index in range(count)]
    assert [result for result in results if not result.is_clean] == []
    assert len({result.label for result in results}) > count / 3


def raise_(error):
    raise error


@pytest.mark.parametrize(
    ("run", "outcome"),
    [
        (lambda: None, "accepted"),
        (lambda: raise_(UserError("a.json: not JSON")), "refused"),
        (lambda: raise_(UserError("long " * 1000)), "traceback"),
        (lambda: raise_(SystemExit(0)), "accepted"),
        (lambda: raise_(SystemExit(1)), "traceback"),
        (lambda: raise_(KeyError("x")), "traceback"),
        (lambda: raise_(MemoryError()), "over 2 GB"),
        (lambda: harness.expect(1 == 2, "one is not two"), "silently wrong"),
    ],
)
def test_outcomes(monkeypatch, tmp_path, run, outcome):
    area = SimpleNamespace(make=lambda rng, shared, folder: harness.Input("made", run))
    monkeypatch.setattr(harness.importlib, "import_module", lambda name: area)
    result = harness.run_input("coco", 0, 3, tmp_path, lambda label: None)
    assert (result.area, result.index, result.label, result.outcome) == ("coco", 3, "made", outcome)
