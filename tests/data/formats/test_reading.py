"""Every reader, on a small file of its tool, and what is special to each format."""

import base64
import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from d2_maskrcnn import UserError
from d2_maskrcnn.data.formats import read, recognize
from d2_maskrcnn.data.formats.brush import decode_brush, encode_brush
from d2_maskrcnn.data.formats.cleaning import BOX_AS_RECTANGLE, clean
from d2_maskrcnn.data.formats.image_references import embedded_image
from tests.data.formats.conftest import CAT, DOG, FILES, is_cat_and_dog, pixels_of, save_image, save_mask

NAMES = {"via_1": "via", "via_2": "via", "via_3": "via", "label_studio": "label-studio"}


@pytest.mark.parametrize("name", ["coco", "via_1", "via_2", "via_3", "labelme", "cvat", "label_studio", "yolo", "voc"])
def test_all_formats_give_the_same_dataset(source, name):
    folder = source(name)
    assert recognize(folder).format == NAMES.get(name, name)
    dataset = read(folder)
    notes = clean(dataset)
    assert not dataset.dropped
    assert [(image.name, image.width, image.height) for image in dataset.images] == [("a.png", 40, 30)]
    assert [category.name for category in dataset.categories] == ["cat", "dog"]
    assert is_cat_and_dog(dataset)
    boxes = np.array([each.bbox for each in dataset.annotations])
    assert boxes == pytest.approx(np.array([[2, 3, 10, 8], [20, 5, 10, 20]]), abs=1e-4)
    assert [each.area for each in dataset.annotations] == [80, 200]
    assert notes == ({BOX_AS_RECTANGLE: 1} if name == "coco" else {})


def edit(path, change):
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def area_of(folder):
    dataset = read(folder)
    clean(dataset)
    return [each.area for each in dataset.annotations], [each.reason for each in dataset.dropped]


# --- VIA


@pytest.mark.parametrize(
    ("shape", "area"),
    [
        ({"name": "circle", "cx": 20, "cy": 15, "r": 10}, 314),
        ({"name": "ellipse", "cx": 20, "cy": 15, "rx": 12, "ry": 6, "theta": 0.5}, 226),
        ({"name": "rect", "x": -5, "y": -5, "width": 15, "height": 15}, 100),
    ],
)
def test_via_shapes(source, shape, area):
    folder = source("via_1")
    edit(folder / "via_1.json", lambda data: data["a.png123"]["regions"]["0"].update(shape_attributes=shape))
    areas, dropped = area_of(folder)
    assert areas[0] == pytest.approx(area, rel=0.02)
    assert not dropped


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        ({"name": "point", "cx": 1, "cy": 1}, "a shape of type 'point', which has no area"),
        ({"name": "polygon", "all_points_x": [1, 2]}, "a polygon without as many x as y"),
        ({"name": "polygon", "all_points_x": [1, 2], "all_points_y": [1, 2]}, "a polygon of fewer than 3 points"),
        ({"name": "circle", "cx": "a", "cy": 1, "r": 2}, "values of a circle that are not numbers"),
        ({"name": "rect", "x": 50, "y": 1, "width": 5, "height": 5}, "outside of its image or without area"),
        ({}, "a shape of type 'None', which has no area"),
    ],
)
def test_via_regions_that_cannot_be_used(source, shape, reason):
    folder = source("via_1")
    edit(folder / "via_1.json", lambda data: data["a.png123"]["regions"]["0"].update(shape_attributes=shape))
    areas, dropped = area_of(folder)
    assert (areas, dropped) == ([200], [reason])


def test_via_categories(source):
    path = source("via_1") / "via_1.json"
    edit(path, lambda data: data["a.png123"]["regions"]["0"].update(region_attributes={"size": "big", "class": "cow"}))
    assert [each.name for each in read(path).categories] == ["cow", "dog"]
    chosen = read(path, category_attribute="size")
    assert [each.name for each in chosen.categories] == ["big"]
    assert [each.reason for each in chosen.dropped] == ["no category in the attribute 'size'"]
    edit(path, lambda data: [each.update(region_attributes={}) for each in data["a.png123"]["regions"].values()])
    assert [each.name for each in read(path, category="balloon").categories] == ["balloon"]


# --- LabelMe


def png_in_base64(pixels):
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def test_labelme_masks_circles_and_crowds(source):
    path = source("labelme") / "labelme.json"
    ring = np.full((5, 5), 255, np.uint8)
    ring[1:4, 1:4] = 0
    shapes = [
        {"label": "ring", "shape_type": "mask", "points": [[37, 0], [41, 4]], "mask": png_in_base64(ring)},
        {"label": "disk", "shape_type": "circle", "points": [[15, 15], [15, 20]], "flags": {"crowd": True}},
        {"label": "spot", "shape_type": "point", "points": [[1, 1]]},
        {"label": "bad", "shape_type": "mask", "points": [[1, 1], [2, 2]], "mask": "%"},
        {"label": "", "shape_type": "rectangle", "points": [[1, 1], [2, 2]]},
    ]
    edit(path, lambda data: data.update(shapes=shapes))
    dataset = read(path)
    (_, mask), (_, disk) = pixels_of(dataset)
    assert mask.sum() == 5 + 2 * 2  # the left column, and two pixels of two rows: the others are outside of the image
    assert disk.sum() == pytest.approx(np.pi * 25, rel=0.03)
    assert [each.iscrowd for each in dataset.annotations] == [0, 1]
    assert [each.reason for each in dataset.dropped] == [
        "a shape without a label",
        "a shape of type 'point', which has no area",
        "a mask that is not a PNG in base64",
    ]


def test_labelme_embedded_images(source, tmp_path):
    folder = source("labelme")
    content = (folder / "a.png").read_bytes()
    (folder / "a.png").unlink()
    edit(folder / "labelme.json", lambda data: data.update(imageData=base64.b64encode(content).decode()))
    dataset = read(folder)
    image = dataset.images[0]
    assert (image.name, image.width, image.height) == ("a.png", 40, 30)
    assert embedded_image(image.embedded_in) == content
    assert is_cat_and_dog(dataset)


def test_one_broken_labelme_file(source):
    folder = source("labelme")
    (folder / "b.json").write_text('{"shapes": [')
    edit(shutil.copy(folder / "labelme.json", folder / "c.json"), lambda data: data.update(imagePath="c.png"))
    dataset = read(folder)
    assert is_cat_and_dog(dataset)
    assert sorted((each.kind, each.reason) for each in dataset.dropped)[-2:] == [
        ("file", "a file that cannot be read"),
        ("image", "no such file"),
    ]


# --- CVAT


def test_cvat_groups_masks_and_crowds(source):
    path = source("cvat") / "cvat.xml"
    shapes = """
        <polygon label="cat" points="0,0;4,0;4,4;0,4" group_id="3"/>
        <box label="cat" xtl="6" ytl="0" xbr="9" ybr="3" group_id="3"/>
        <mask label="dog" rle="1, 2, 3" left="10" top="20" width="3" height="2">
          <attribute name="is_crowd">true</attribute></mask>
        <ellipse label="dog" cx="30" cy="15" rx="5" ry="3" rotation="90"/>
        <box label="dog" xtl="20" ytl="10" xbr="30" ybr="14" rotation="90"/>
        <points label="dog" points="1,1"/><polygon label="dog" points="1,1;a,2;3,3"/>"""
    before, _, rest = path.read_text().partition('height="30">')
    path.write_text(before + 'height="30">' + shapes + "</image></annotations>")
    assert rest
    dataset = read(path)
    masks = pixels_of(dataset)
    assert [(name, mask.sum()) for name, mask in masks[:2]] == [("cat", 25), ("dog", 2)]
    assert [each.iscrowd for each in dataset.annotations] == [0, 1, 0, 0]
    assert masks[2][1].any(axis=1).sum() == 10  # the ellipse is upright
    assert masks[3][1].any(axis=1).sum() == 10  # and so is the box
    assert [each.reason for each in dataset.dropped] == [
        "a shape of type 'points', which has no area",
        "coordinates that are not numbers",
    ]


def test_xml_with_entities_is_refused(source):
    path = source("cvat") / "cvat.xml"
    entities = '<!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]>'
    path.write_text(path.read_text().replace("<annotations>", entities + "<annotations>").replace("pets", "&b;"))
    with pytest.raises(UserError, match="document type definition"):
        read(path)
    path.write_text("<annotations>" + "<a>" * 5000)
    with pytest.raises(UserError, match="nested more than"):
        read(path)
    path.write_text("<annotations><image></annotations>")
    with pytest.raises(UserError, match="not XML, mismatched tag at line 1"):
        read(path)


# --- Label Studio


def test_brush_masks():
    rng = np.random.default_rng(0)
    for mask in (np.zeros((3, 5), bool), np.ones((3, 5), bool), rng.random((40, 30)) > 0.5, np.eye(300, dtype=bool)):
        assert (decode_brush(encode_brush(mask), *mask.shape) == mask).all()
    with pytest.raises(UserError, match="truncated"):
        decode_brush(encode_brush(mask)[:40], *mask.shape)
    with pytest.raises(UserError, match="a brush mask of 90000 pixels in an image of 5x3"):
        decode_brush(encode_brush(mask), 3, 5)
    with pytest.raises(UserError, match="not a list of bytes"):
        decode_brush([1, 999], 3, 5)


def test_label_studio_brushes_and_predictions(source):
    path = source("label_studio") / "label_studio.json"
    mask = np.zeros((30, 40), bool)
    mask[5:10, 3:30] = True
    mask[6:8, 10:20] = False
    brush = {"type": "brushlabels", "value": {"format": "rle", "rle": encode_brush(mask), "brushlabels": ["cow"]}}
    ellipse = {
        "type": "ellipselabels",
        "value": {"x": 50, "y": 50, "radiusX": 10, "radiusY": 10, "rotation": 0, "ellipselabels": ["cow"]},
    }
    line = {"type": "keypointlabels", "value": {"x": 1, "y": 1, "keypointlabels": ["cow"]}}

    def change(data):
        data[0].update(annotations=[], predictions=[{"score": 0.75, "result": [brush, ellipse, line]}])

    edit(path, change)
    dataset = read(path)
    found = pixels_of(dataset)
    assert (found[0][1] == mask).all()
    assert found[1][1].sum() == pytest.approx(np.pi * 4 * 3, rel=0.1)
    assert [each.score for each in dataset.annotations] == [0.75, 0.75]
    assert [each.reason for each in dataset.dropped] == ["a result of type 'keypointlabels', which has no area"]


def test_label_studio_uses_one_annotation_of_a_task(source):
    path = source("label_studio") / "label_studio.json"

    def change(data):
        first = data[0]["annotations"][0]
        data[0]["annotations"] = [{"was_cancelled": True, "result": []}, first, {"result": first["result"][:1]}]

    edit(path, change)
    dataset = read(path)
    assert is_cat_and_dog(dataset)
    assert [each.reason for each in dataset.dropped] == ["another annotation of the same image"]


# --- YOLO


def test_yolo_lines_that_cannot_be_used(source):
    folder = source("yolo")
    (folder / "labels" / "train" / "a.txt").write_text(
        "0 0.1 0.1 0.5 0.1 0.5\n7 0 0 1 0 1 1\nx 0 0 1 0 1 1\n0 10 10 30 10 30 20\n\n1 0 0 1 0 1 1 0 1\n"
    )
    areas, dropped = area_of(folder)
    assert areas == [1200]
    assert [each.split(",")[0].split(";")[0] for each in dropped] == [
        "a polygon of fewer than 3 points",
        "a class index that 'names' does not contain",
        "values that are not numbers",
        "coordinates above 2",
    ]


def test_roboflow_yolo_folders(tmp_path):
    for split in ("train", "valid"):
        save_image(tmp_path / split / "images" / "a.png")
        (tmp_path / split / "labels").mkdir()
        shutil.copy(FILES / "yolo.txt", tmp_path / split / "labels" / "a.txt")
    text = "train: ../train/images\nval: ../valid/images\ntest: ../test/images\nnc: 2\nnames: ['cat', 'dog']\n"
    (tmp_path / "data.yaml").write_text(text)
    dataset = read(tmp_path)
    assert [image.split for image in dataset.images] == ["train", "val"]
    assert len(dataset.annotations) == 4
    (tmp_path / "data.yaml").write_text(text.replace("../valid", "../other"))
    with pytest.raises(UserError, match=r"'val' is '\.\./other/images', which does not exist"):
        read(tmp_path)


# --- masks


def test_voc_void_splits_and_16_bits(source):
    folder = source("voc")
    save_image(folder / "JPEGImages" / "b.png")
    save_mask(folder / "SegmentationObject" / "b.png", (300, CAT), (255, DOG), dtype=np.uint16)
    save_mask(folder / "SegmentationClass" / "b.png", (2, CAT), (1, DOG), dtype=np.uint16)
    (folder / "ImageSets" / "Segmentation").mkdir(parents=True)
    (folder / "ImageSets" / "Segmentation" / "train.txt").write_text("a\n")
    (folder / "ImageSets" / "Segmentation" / "val.txt").write_text("b\n")
    dataset = read(folder)
    assert [image.split for image in dataset.images] == ["train", "val"]
    assert [name for name, _ in pixels_of(dataset)] == ["cat", "dog", "cat", "dog"]
    save_mask(folder / "SegmentationObject" / "a.png", (1, CAT), (255, DOG))
    assert [name for name, _ in pixels_of(read(folder))] == ["cat", "cat", "dog"]


def test_voc_colors_of_cvat(source):
    folder = source("voc")
    (folder / "class_names.txt").unlink()
    (folder / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ndog:40,50,60::\ncat:10,20,30::\n"
    )
    assert is_cat_and_dog(read(folder))


@pytest.mark.parametrize("colors", ["10,20,30 40,50,60", " "])
def test_voc_in_colors(source, colors):
    """CVAT and Datumaro save colors, with or without a list of them; then they are those of VOC's palette."""
    folder = source("voc")
    (folder / "class_names.txt").unlink()
    cat, dog = colors.split(" ")
    (folder / "labelmap.txt").write_text(f"# label:color_rgb:parts:actions\nbackground:::\ncat:{cat}::\ndog:{dog}::\n")
    objects = np.zeros((30, 40, 3), np.uint8)
    objects[CAT], objects[DOG], objects[28:] = (128, 0, 0), (0, 128, 0), (224, 224, 192)
    Image.fromarray(objects).save(folder / "SegmentationObject" / "a.png")
    if colors != " ":
        objects[CAT], objects[DOG] = (10, 20, 30), (40, 50, 60)
    Image.fromarray(objects).save(folder / "SegmentationClass" / "a.png")
    assert is_cat_and_dog(read(folder))


def test_three_layouts_of_masks(tmp_path):
    fudan, nuclei, files = tmp_path / "fudan", tmp_path / "nuclei" / "stage1_train", tmp_path / "files"
    save_image(fudan / "PNGImages" / "a.png")
    save_mask(fudan / "PedMasks" / "a_mask.png", (1, CAT), (2, DOG))
    for name in ("one", "two"):
        save_image(nuclei / name / "images" / f"{name}.png")
        save_mask(nuclei / name / "masks" / "12ab.png", (255, CAT))
        save_mask(nuclei / name / "masks" / "34cd.png", (255, DOG))
    save_image(files / "images" / "a.jpg")
    save_mask(files / "masks" / "a_0.png", (255, CAT))
    save_mask(files / "masks" / "a_1.png", (255, DOG))
    for folder, count in ((fudan, 1), (nuclei, 2), (nuclei.parent, 2), (files, 1)):
        assert recognize(folder).format == "masks"
        dataset = read(folder, category="thing")
        assert len(dataset.images) == count
        assert [name for name, _ in pixels_of(dataset)] == ["thing"] * 2 * count
        assert [int(mask.sum()) for _, mask in pixels_of(dataset)][:2] == [80, 200]
        assert not dataset.dropped


def test_colors_are_objects(tmp_path):
    save_image(tmp_path / "images" / "a.png")
    pixels = np.zeros((30, 40, 3), np.uint8)
    pixels[CAT], pixels[DOG] = (200, 0, 0), (0, 0, 200)
    (tmp_path / "masks").mkdir()
    Image.fromarray(pixels).save(tmp_path / "masks" / "a.png")
    save_image(tmp_path / "images" / "b.png")
    save_mask(tmp_path / "masks" / "b.png")
    dataset = read(tmp_path)
    assert sorted(int(mask.sum()) for _, mask in pixels_of(dataset)) == [80, 200]
    assert [each.reason for each in dataset.dropped] == ["a mask without any object"]


# --- recognition


def test_unknown_files_get_the_nearest_guess(tmp_path):
    cases = {
        "a.json": ('{"images": [], "categories": []}', "nearest to COCO JSON, of which 'annotations' is missing"),
        "b.json": ('{"x": 1}', "no known format (it has 'x')"),
        "c.txt": ("0 0.1 0.2 0.3 0.4 0.5 0.6\n", "labels of YOLO; name the data.yaml"),
        "d.xml": ("<annotation><object/></annotation>", "boxes of Pascal VOC, without masks"),
        "e.csv": ("filename,file_size,region_shape_attributes\n", "CSV of VIA; export the annotations as JSON"),
        "f.yaml": ("a: 1\n", "text in no known format"),
    }
    for name, (content, expected) in cases.items():
        (tmp_path / name).write_text(content)
        with pytest.raises(UserError) as error:
            recognize(tmp_path / name)
        assert expected in str(error.value)
        assert "expected COCO JSON, JSON of the VGG Image Annotator (VIA), " in str(error.value)
    with pytest.raises(UserError, match="an image, not annotations"):
        recognize(save_image(tmp_path / "g.png"))
    with pytest.raises(UserError, match=r"labels of YOLO; name the data\.yaml"):
        recognize(tmp_path)


def test_folders_without_or_with_several_formats(source, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no annotations in a known format; expected"):
        read(tmp_path / "empty")
    save_image(tmp_path / "empty" / "a.png")
    with pytest.raises(UserError, match="no annotations in a known format, but 1 image;"):
        read(tmp_path / "empty")
    source("cvat"), source("labelme")
    with pytest.raises(UserError, match=r"several formats, LabelMe JSON \(.*labelme.json\) and CVAT XML"):
        read(tmp_path)
    with pytest.raises(UserError, match="no such folder; expected the images"):
        read(tmp_path / "cvat", images=tmp_path / "nowhere")


def test_three_forms_of_the_same_photographs(shared_dir):
    forms = {}
    for form in ("data_annotated", "data_dataset_coco", "data_dataset_voc"):
        dataset = read(shared_dir / "data" / "labelme_voc3" / form)
        clean(dataset)
        assert not dataset.dropped
        names = {image.id: image.path.name for image in dataset.images}
        masks = zip(dataset.annotations, pixels_of(dataset), strict=True)
        forms[form] = sorted(((names[each.image_id], name, mask) for each, (name, mask) in masks),
                             key=lambda entry: (*entry[:2], entry[2].sum()))  # fmt: skip
    labelme, coco, voc = forms.values()
    assert len(labelme) == 12
    assert [entry[:2] for entry in labelme] == [entry[:2] for entry in coco] == [entry[:2] for entry in voc]
    assert all((a[2] == b[2]).all() for a, b in zip(labelme, coco, strict=True))
    # LabelMe draws its PNGs with the border pixels of the polygons.
    ious = [(a[2] & b[2]).sum() / (a[2] | b[2]).sum() for a, b in zip(labelme, voc, strict=True)]
    assert np.mean(ious) > 0.97
    assert min(ious) > 0.93


# --- malformed files

VALUES = [
    None,
    True,
    -1,
    1e9,
    float("nan"),
    float("inf"),
    2**70,
    "",
    "a",
    "../x",
    "\0",
    "\ud800",
    [],
    {},
    [[]],
    [1],
    {"a": 1},
]


def places(value, place=()):
    """Yield the keys that lead to each value in parsed JSON."""
    yield place
    for key, each in value.items() if isinstance(value, dict) else enumerate(value if isinstance(value, list) else ()):
        yield from places(each, (*place, key))


@pytest.mark.parametrize("name", ["coco", "via_1", "via_2", "via_3", "labelme", "label_studio"])
def test_any_value_in_any_place_is_dropped_or_refused(source, name):
    """Nothing but UserError is raised, whatever a value is replaced by; what is left can be cleaned."""
    path = next(source(name).glob("*.json"))
    text = path.read_text()
    rng = np.random.default_rng(0)
    keys = [place for place in places(json.loads(text)) if place]
    for place in keys:
        data = json.loads(text)
        parent = data
        for key in place[:-1]:
            parent = parent[key]
        parent[place[-1]] = VALUES[rng.integers(len(VALUES))]
        path.write_text(json.dumps(data))
        try:
            dataset = read(path)
            clean(dataset)
        except UserError as error:
            assert "\n" not in str(error)
