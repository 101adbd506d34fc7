import copy
import pickle

import pytest

from detectron2.data import DatasetCatalog, Metadata, MetadataCatalog

pytestmark = pytest.mark.usefixtures("clean_catalogs")


def test_a_registered_dataset_is_loaded_each_time_it_is_asked_for():
    calls = []
    DatasetCatalog.register("numbers", lambda: calls.append(1) or [{"n": len(calls)}])
    assert calls == []
    assert DatasetCatalog.get("numbers") == [{"n": 1}]
    assert DatasetCatalog.get("numbers") == [{"n": 2}]
    assert "numbers" in DatasetCatalog
    assert "numbers" in DatasetCatalog.list()
    DatasetCatalog.remove("numbers")
    assert "numbers" not in DatasetCatalog
    with pytest.raises(KeyError, match="numbers"):
        DatasetCatalog.remove("numbers")


def test_clear_forgets_all():
    before = dict(DatasetCatalog)
    try:
        DatasetCatalog.clear()
        assert DatasetCatalog.list() == []
        with pytest.raises(KeyError, match="none"):
            DatasetCatalog.get("anything")
    finally:
        DatasetCatalog.update(before)


def test_an_unknown_name_lists_the_nearest_first():
    with pytest.raises(KeyError) as caught:
        DatasetCatalog.get("coco_2017_trian")
    message = str(caught.value)
    assert "'coco_2017_trian' is not registered" in message
    listed = message.split("most similar first: ")[1]
    assert listed.startswith("coco_2017_train,")
    assert all(name in listed for name in DatasetCatalog.list())


def test_a_name_is_registered_once_and_with_a_function():
    DatasetCatalog.register("once", list)
    with pytest.raises(ValueError, match="'once' is already registered"):
        DatasetCatalog.register("once", list)
    with pytest.raises(TypeError, match="list"):
        DatasetCatalog.register("records", [])


def test_catalogs_describe_themselves():
    assert "coco_2017_train" in str(DatasetCatalog)
    assert "coco_2017_train" in repr(MetadataCatalog)


def test_metadata_are_the_same_object_for_the_same_name():
    meta = MetadataCatalog.get("my_data")
    assert meta.name == "my_data"
    assert meta.set(thing_classes=["a"], evaluator_type="coco") is meta
    assert MetadataCatalog.get("my_data").thing_classes == ["a"]
    assert meta.get("thing_classes") == ["a"]
    assert meta.get("missing") is None
    assert meta.get("missing", 4) == 4
    assert "my_data" in MetadataCatalog.list()
    MetadataCatalog.remove("my_data")
    assert "my_data" not in MetadataCatalog
    with pytest.raises(ValueError, match="empty"):
        MetadataCatalog.get("")


def test_metadata_keep_their_values():
    meta = Metadata(name="fixed")
    meta.thing_classes = ["a", "b"]
    meta.thing_classes = ["a", "b"]
    for change in (lambda: setattr(meta, "thing_classes", ["c"]), lambda: meta.set(thing_classes=["c"])):
        with pytest.raises(ValueError, match=r"'fixed'.*'thing_classes' is already \['a', 'b'\].*\['c'\]"):
            change()
    assert meta.thing_classes == ["a", "b"]
    assert meta.as_dict() == {"name": "fixed", "thing_classes": ["a", "b"]}
    meta.as_dict()["name"] = "other"
    assert meta.name == "fixed"


def test_an_unknown_attribute_lists_those_there_are():
    with pytest.raises(AttributeError, match=r"'small' has no attribute 'thing_class'. It has: name, thing_classes"):
        _ = Metadata(name="small", thing_classes=[]).thing_class
    with pytest.raises(AttributeError, match="It has: nothing"):
        _ = Metadata().thing_class
    assert Metadata().name == "N/A"


def test_metadata_can_be_copied_and_pickled():
    meta = Metadata(name="copied", thing_classes=["a"])
    for twin in (copy.deepcopy(meta), pickle.loads(pickle.dumps(meta))):
        assert twin.as_dict() == meta.as_dict()
    assert repr(meta) == "Metadata(name='copied', thing_classes=['a'])"
