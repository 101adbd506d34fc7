import random
from itertools import islice

import numpy as np
import pytest
import torch
from torch.utils.data import IterableDataset

from detectron2.config import get_cfg
from detectron2.data import (
    DatasetCatalog,
    MetadataCatalog,
    build_batch_data_loader,
    build_detection_test_loader,
    build_detection_train_loader,
    get_detection_dataset_dicts,
    print_instances_class_histogram,
)
from detectron2.data.build import filter_images_with_only_crowd_annotations, worker_init_reset_seed
from detectron2.data.datasets import register_coco_instances
from detectron2.data.samplers import RepeatFactorTrainingSampler, TrainingSampler

pytestmark = pytest.mark.usefixtures("clean_catalogs")


class Stream(IterableDataset):
    def __iter__(self):
        return iter(range(5))


def identity(element):
    return element


def draw_numbers(record):
    return record, random.random(), float(np.random.rand()), float(torch.rand(()))


def sizes(count):
    return [{"width": 10 + 20 * (n % 3 == 0), "height": 20, "n": n} for n in range(count)]


@pytest.fixture
def shapes(tiny_coco):
    register_coco_instances("shapes", {}, tiny_coco.json_file, tiny_coco.images)
    return tiny_coco


@pytest.fixture
def cfg(shapes):
    cfg = get_cfg()
    cfg.MODEL.MASK_ON = True
    cfg.DATASETS.TRAIN = ("shapes",)
    cfg.DATASETS.TEST = ("shapes",)
    cfg.INPUT.MASK_FORMAT = "bitmask"
    cfg.INPUT.MIN_SIZE_TRAIN = (40,)
    cfg.INPUT.MIN_SIZE_TEST = 40
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 2
    return cfg


def test_only_crowd():
    records = [{"annotations": []}, {"annotations": [{"iscrowd": 1}]}, {"annotations": [{"iscrowd": 1}, {}]}]
    assert filter_images_with_only_crowd_annotations([]) == []
    assert filter_images_with_only_crowd_annotations(records) == records[2:]


def test_records_of_datasets(shapes, caplog):
    caplog.set_level("INFO")
    assert [record["image_id"] for record in get_detection_dataset_dicts("shapes")] == [10, 11]
    assert "square" in caplog.text
    assert len(get_detection_dataset_dicts(("shapes", "shapes"), filter_empty=False)) == 6


def test_datasets_that_do_not_go_together(shapes, tmp_path):
    DatasetCatalog.register("no_records", list)
    DatasetCatalog.register("no_annotations", lambda: [{"file_name": "b", "height": 2, "width": 3, "annotations": []}])
    DatasetCatalog.register("other_classes", lambda: [{"annotations": []}])
    MetadataCatalog.get("other_classes").thing_classes = ["b"]
    for names, message in (
        ([], "DATASETS.TRAIN"),
        ("no_records", "'no_records' has no records"),
        ("no_annotations", "no image of no_annotations"),
        (["shapes", "other_classes"], "'shapes' and 'other_classes'"),
    ):
        with pytest.raises(ValueError, match=message):
            get_detection_dataset_dicts(names)
    assert len(get_detection_dataset_dicts("no_annotations", filter_empty=False)) == 1
    with pytest.raises(KeyError, match=r"'shape' is not registered.*first: shapes"):
        get_detection_dataset_dicts(["shape"])
    register_coco_instances("no_images", {}, shapes.json_file, str(tmp_path / "elsewhere"))
    with pytest.raises(FileNotFoundError, match=r"'no_images'.*elsewhere.*DETECTRON2_DATASETS"):
        get_detection_dataset_dicts("no_images")
    for unsupported in ({"min_keypoints": 1}, {"proposal_files": ["x"]}):
        with pytest.raises(ValueError, match=next(iter(unsupported))):
            get_detection_dataset_dicts("shapes", **unsupported)


def test_torch_datasets_are_passed_through():
    stream = Stream()
    DatasetCatalog.register("stream", lambda: stream)
    assert get_detection_dataset_dicts("stream") is stream


@pytest.mark.parametrize("classes", [["a"], ["a", "b"], ["a", "b", "a very long class name", "d"]])
def test_histogram(classes, caplog):
    caplog.set_level("INFO")
    annotations = [{"category_id": 0}] * 3 + [{"category_id": len(classes) - 1}] * 17
    annotations += [{"category_id": 0, "iscrowd": 1}] * 100
    print_instances_class_histogram([{"annotations": []}, {"annotations": annotations}], classes)
    cells = [cell.strip() for cell in caplog.text.replace("\n", "|").split("|")]
    assert cells[cells.index("a") + 1] == ("20" if len(classes) == 1 else "3")
    if len(classes) > 1:
        assert cells[cells.index("total") + 1] == "20"
    if len(classes) > 2:
        assert cells[cells.index("a very long..") + 1] == "0"
        assert cells[cells.index("d") + 1] == "17"


@pytest.mark.parametrize("category", [-1, 2])
def test_histogram_refuses_unnamed_categories(category):
    with pytest.raises(ValueError, match=f"{category}.*2 class names"):
        print_instances_class_histogram([{"annotations": [{"category_id": category}]}], ["a", "b"])


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("grouping", [False, True])
def test_training_batches(workers, grouping):
    records = sizes(12)
    loader = build_detection_train_loader(
        dataset=records,
        mapper=identity,
        sampler=TrainingSampler(12, seed=1),
        total_batch_size=2,
        aspect_ratio_grouping=grouping,
        num_workers=workers,
    )
    batches = list(islice(loader, 6))
    # What Detectron2 0.6 gives without workers; here the order is the same for any number of them.
    expected = [[1, 4], [6, 8], [11, 0], [5, 3], [2, 9], [10, 7]]
    if grouping:
        expected = [[1, 4], [8, 11], [6, 0], [5, 2], [3, 9], [10, 7]]
        assert all(len({record["width"] for record in batch}) == 1 for batch in batches)
    assert [[record["n"] for record in batch] for batch in batches] == expected


def test_loader_arguments():
    collated = build_detection_train_loader(
        dataset=sizes(4), mapper=identity, total_batch_size=2, aspect_ratio_grouping=False, collate_fn=len
    )
    assert next(iter(collated)) == 2
    grouped = build_detection_train_loader(dataset=sizes(4), mapper=None, total_batch_size=2, collate_fn=len)
    assert next(iter(grouped)) == 2
    stream = build_batch_data_loader(Stream(), None, 2, drop_last=False)
    assert list(stream) == [[0, 1], [2, 3], [4]]
    assert len(next(iter(build_batch_data_loader([1, 2, 3], TrainingSampler(3), 9, single_gpu_batch_size=3)))) == 3
    for dataset, sampler, size, message in (
        (Stream(), TrainingSampler(2), 2, "iterable"),
        ([1], None, 2, "needs a sampler"),
        ([1], TrainingSampler(1), 0, "is 0: expected a positive"),
    ):
        with pytest.raises(ValueError, match=message):
            build_batch_data_loader(dataset, sampler, size)


@pytest.mark.parametrize("workers", [1, 2])
def test_workers_draw_different_numbers_that_a_seed_repeats(workers):
    def draw():
        loader = build_batch_data_loader(
            list(range(4)), TrainingSampler(4, shuffle=False), 1, num_workers=workers, collate_fn=draw_numbers, seed=3
        )
        return list(islice(loader, 4))

    first = draw()
    assert first == draw()
    for column in (1, 2, 3):
        assert len({element[column] for element in first}) == 4


def test_seeding_a_worker():
    state = torch.get_rng_state()
    torch.manual_seed(5)
    worker_init_reset_seed(3)
    expected = np.random.RandomState(8).rand(), random.Random(8).random()
    assert (np.random.rand(), random.random()) == expected
    torch.set_rng_state(state)


def test_from_config(cfg):
    loader = build_detection_train_loader(cfg)
    for batch in islice(loader, 3):
        assert len(batch) == 2
        for record in batch:
            assert record["image"].shape[1] == 40
            assert record["image_id"] in (10, 11)
            assert set(record["instances"].gt_classes.tolist()) <= {0, 1}
    unmapped = build_detection_train_loader(cfg, mapper=identity, sampler=TrainingSampler(2, shuffle=False))
    assert [record["image_id"] for record in next(iter(unmapped))] == [10, 11]
    dataset = [{"width": 2, "height": 1}] * 4
    assert next(iter(build_detection_train_loader(cfg, mapper=identity, dataset=dataset))) == dataset[:2]


@pytest.mark.parametrize(
    "sampler", ["TrainingSampler", "RepeatFactorTrainingSampler", "RandomSubsetTrainingSampler", "Unknown"]
)
def test_samplers_by_name(cfg, sampler):
    cfg.DATALOADER.SAMPLER_TRAIN = sampler
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.5
    if sampler == "Unknown":
        with pytest.raises(ValueError, match=r"'Unknown'.*RepeatFactorTrainingSampler"):
            build_detection_train_loader(cfg)
        return
    if sampler == "RandomSubsetTrainingSampler":
        cfg.set_new_allowed(True)
        cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    batch = next(iter(build_detection_train_loader(cfg)))
    assert len(batch) == 2
    if sampler == "RandomSubsetTrainingSampler":
        assert len({record["image_id"] for record in batch}) == 1


@pytest.mark.parametrize("sampler", ["TrainingSampler", "RepeatFactorTrainingSampler"])
def test_the_seed_of_the_config_decides_the_order(cfg, sampler):
    cfg.SEED, cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD = 1, sampler, 0.5

    def read():
        batches = build_detection_train_loader(cfg, mapper=identity)
        return [record["image_id"] for batch in islice(batches, 6) for record in batch]

    assert read() == read()


def test_repeat_factors_from_registered_records(cfg):
    records = get_detection_dataset_dicts(cfg.DATASETS.TRAIN)
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 1.0)
    # Squares are in one of the two images (as a square and as a crowd region), triangles in both.
    assert factors.tolist() == pytest.approx([2**0.5, 1.0])


@pytest.mark.parametrize("workers", [0, 2])
def test_inference_gives_everything_once_in_order(workers):
    loader = build_detection_test_loader(dataset=list(range(7)), mapper=str, batch_size=2, num_workers=workers)
    assert len(loader) == 4
    assert list(loader) == [["0", "1"], ["2", "3"], ["4", "5"], ["6"]]


def test_inference_from_config(cfg):
    batches = list(build_detection_test_loader(cfg, "shapes"))
    assert [[record["image_id"] for record in batch] for batch in batches] == [[10], [11], [12]]
    assert "instances" not in batches[0][0]
    assert len(list(build_detection_test_loader(cfg, "shapes", batch_size=3, mapper=identity))) == 1
    assert list(build_detection_test_loader(dataset=Stream(), mapper=None, batch_size=3)) == [[0, 1, 2], [3, 4]]
    with pytest.raises(ValueError, match="iterable"):
        build_detection_test_loader(dataset=Stream(), mapper=None, sampler=TrainingSampler(2))


def test_a_broken_image_in_a_worker_is_named(cfg, shapes):
    with open(f"{shapes.images}/11.png", "r+b") as file:
        file.truncate(200)
    cfg.DATALOADER.NUM_WORKERS = 1
    with pytest.raises(OSError, match=r"11\.png"):
        list(islice(build_detection_train_loader(cfg), 2))
