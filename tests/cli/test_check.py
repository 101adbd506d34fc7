import json
import shutil

import numpy as np
import pytest
import tifffile

from d2_maskrcnn.cli.main import main


def test_a_good_dataset_ends_with_0(tiny_shapes, capsys):
    assert main(["check", str(tiny_shapes)]) == 0
    shown = capsys.readouterr().out
    assert "instances_train.json: 12 images" in shown and "instances_val.json: 6 images" in shown
    assert "0 kinds of errors" in shown


def test_errors_end_with_2_and_are_gone_after_the_repair(tiny_shapes, tmp_path, capsys):
    data = json.loads((tiny_shapes / "annotations" / "instances_val.json").read_text())
    for image in data["images"]:
        image["file_name"] = str(tiny_shapes / "val" / image["file_name"])
    data["annotations"][0]["bbox"][2] = 0
    data["images"][1]["file_name"] += ".missing"
    source = tmp_path / "val.json"
    source.write_text(json.dumps(data))
    outputs = [tmp_path / name for name in ("flaws.json", "flaws.html", "fixed")]
    options = [word for pair in zip(("--json", "--html", "--fix"), map(str, outputs), strict=True) for word in pair]
    with pytest.raises(SystemExit, match="2"):
        main(["check", str(source), *options])
    shown = capsys.readouterr().out
    assert (
        f"Wrote {outputs[1]}" in shown and "error: 1 box without area" in shown and "missing images dropped: 1" in shown
    )
    flaws = json.loads(outputs[0].read_text())["parts"][0]["flaws"]
    assert next(each for each in flaws if each["kind"] == "box-no-area")["ids"] == [data["annotations"][0]["id"]]
    assert "box-no-area" in outputs[1].read_text()
    assert json.loads(source.read_text()) == data
    assert main(["check", str(outputs[2] / "instances_val.json")]) == 0
    assert main(["check", str(source), *options]) == 2
    assert "exists already; name another file, or add --overwrite" in capsys.readouterr().err


def test_outputs_do_not_replace_what_was_checked(tiny_shapes, tmp_path, capsys):
    source, image = tiny_shapes / "annotations" / "instances_val.json", sorted((tiny_shapes / "val").iterdir())[0]
    for folder in ("annotations", "val"):
        shutil.copytree(tiny_shapes / folder, tmp_path / folder)
    for path in (source, image):
        copy = tmp_path / path.relative_to(tiny_shapes)
        words = ["check", str(tmp_path / "annotations" / source.name), "--overwrite"]
        for option in ("--json", "--html"):
            assert main([*words, option, str(copy)]) == 2
            assert "is one of the files that were checked" in capsys.readouterr().err
            assert copy.read_bytes() == path.read_bytes()
    assert main([*words, "--json", str(tmp_path / "a"), "--html", str(tmp_path / "a")]) == 2
    assert "are the same file" in capsys.readouterr().err


def test_masks_are_needed_unless_the_options_say_otherwise(tiny_shapes, tmp_path):
    data = json.loads((tiny_shapes / "annotations" / "instances_val.json").read_text())
    data["images"] = [{**each, "file_name": str(tiny_shapes / "val" / each["file_name"])} for each in data["images"]]
    for annotation in data["annotations"]:
        del annotation["segmentation"]
    source = tmp_path / "boxes.json"
    source.write_text(json.dumps(data))
    with pytest.raises(SystemExit, match="2"):
        main(["check", str(source)])
    assert main(["check", str(source), "--opts", "MODEL.MASK_ON", "False"]) == 0


def test_a_file_in_no_known_format(tmp_path, capsys):
    (tmp_path / "a.json").write_text("{}")
    assert main(["check", str(tmp_path / "a.json")]) == 2
    assert "a.json" in capsys.readouterr().err


def test_images_of_another_layout_than_the_models_are_listed(tiny_shapes, tmp_path, capsys):
    names = {"good.tif": (8, 9, 5), "three.tif": (8, 9, 3), "time.tif": (2, 3, 8, 9)}
    for name, shape in names.items():
        if name == "time.tif":
            tifffile.imwrite(tmp_path / name, np.zeros(shape, np.uint8), imagej=True, metadata={"axes": "TCYX"})
        else:
            tifffile.imwrite(
                tmp_path / name, np.zeros(shape, np.uint16), planarconfig="contig", photometric="minisblack"
            )
    images = [{"id": i, "file_name": name, "width": 9, "height": 8} for i, name in enumerate(names)]
    box = {"bbox": [1, 1, 4, 4], "area": 16, "iscrowd": 0, "segmentation": [[1, 1, 5, 1, 5, 5, 1, 5]]}
    annotations = [{"id": i + 1, "image_id": i, "category_id": 1, **box} for i in range(3)]
    data = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "cell"}]}
    (tmp_path / "a.json").write_text(json.dumps(data))
    raw = ["INPUT.FORMAT", "RAW", "MODEL.PIXEL_MEAN", "[0,0,0,0,0]", "MODEL.PIXEL_STD", "[1,1,1,1,1]"]
    for options, expected in ((["--opts", *raw], [1, 2]), ([], [0, 1])):
        report = tmp_path / f"{len(options)}.json"
        with pytest.raises(SystemExit, match="2"):
            main(["check", str(tmp_path / "a.json"), "--json", str(report), *options])
        flaws = json.loads(report.read_text())["parts"][0]["flaws"]
        assert next(each for each in flaws if each["kind"] == "image-unreadable")["ids"] == expected
    shown = capsys.readouterr().out
    assert "three.tif has 3 channels, the model takes 5" in shown and "INPUT.FORMAT RAW reads it" in shown


def test_reports_replace_reports_only(tiny_shapes, tmp_path, capsys):
    others = tmp_path / "annotations.json"  # not among the files that are read
    shutil.copy(tiny_shapes / "annotations" / "instances_train.json", others)
    before = others.read_bytes()
    words = ["check", str(tiny_shapes / "annotations" / "instances_val.json"), "--overwrite"]
    for option in ("--json", "--html"):
        assert main([*words, option, str(others)]) == 2
        assert "annotations.json: is not a report of an earlier check" in capsys.readouterr().err
        assert main([*words, option, str(tmp_path)]) == 2
        assert "is a folder; name a file" in capsys.readouterr().err
        assert [main([*words, option, str(tmp_path / option)]) for _ in range(2)] == [0, 0]
    assert others.read_bytes() == before
