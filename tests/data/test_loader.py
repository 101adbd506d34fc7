import multiprocessing
import os
import random
import signal
from itertools import islice

import numpy as np
import pytest
import torch

from d2_maskrcnn import UserError, add_d2_maskrcnn_config
from d2_maskrcnn.data import build_resumable_train_loader, register_own_data
from d2_maskrcnn.data.loader import BatchStream, seeded_randomness
from detectron2.config import get_cfg
from detectron2.data import DatasetCatalog


@pytest.fixture
def cfg(tiny_shapes):
    cfg = get_cfg()
    add_d2_maskrcnn_config(cfg)
    cfg.D2_MASKRCNN.DATA.TRAIN_JSON = str(tiny_shapes / "annotations" / "instances_train.json")
    cfg.MODEL.MASK_ON = True
    cfg.INPUT.MIN_SIZE_TRAIN = (48, 56, 64)  # drawn at random, as is the flip
    cfg.INPUT.CROP.ENABLED = True
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.SOLVER.IMS_PER_BATCH = 4
    register_own_data(cfg)
    return cfg


def take(loader, start, count):
    loader.set_start_iter(start)
    return list(islice(iter(loader), count))


def assert_same(batches, expected):
    assert len(batches) == len(expected) > 0
    for batch, other in zip(batches, expected, strict=True):
        assert [sample["image_id"] for sample in batch] == [sample["image_id"] for sample in other]
        for sample, same in zip(batch, other, strict=True):
            assert torch.equal(sample["image"], same["image"])
            assert torch.equal(sample["instances"].gt_boxes.tensor, same["instances"].gt_boxes.tensor)
            assert torch.equal(sample["instances"].gt_classes, same["instances"].gt_classes)


@pytest.mark.parametrize("workers", [0, 2])
def test_resuming_gives_the_tail_bit_for_bit(cfg, workers):
    expected = take(build_resumable_train_loader(cfg, seed=3), 0, 9)
    cfg.DATALOADER.NUM_WORKERS = workers
    for start in (0, 1, 6):
        assert_same(take(build_resumable_train_loader(cfg, seed=3), start, 9 - start), expected[start:])


def test_two_processes_share_the_batches_of_one(cfg):
    whole = take(build_resumable_train_loader(cfg, seed=3), 2, 6)
    halves = [take(build_resumable_train_loader(cfg, seed=3, rank=rank, world_size=2), 2, 6) for rank in (0, 1)]
    assert_same([left + right for left, right in zip(*halves, strict=True)], whole)


def test_an_image_seen_again_is_augmented_anew(cfg):
    batches = take(build_resumable_train_loader(cfg, seed=3), 0, 30)
    shapes = {}
    for sample in (sample for batch in batches for sample in batch):
        shapes.setdefault(sample["image_id"], set()).add(tuple(sample["image"].shape))
    assert all(len(seen) > 1 for seen in shapes.values())


def test_seed_can_be_set_later(cfg):
    loader = build_resumable_train_loader(cfg, seed=3)
    loader.set_seed(4)
    batches = take(loader, 0, 3)
    assert_same(batches, take(build_resumable_train_loader(cfg, seed=4), 0, 3))
    other = take(build_resumable_train_loader(cfg, seed=3), 0, 3)
    assert [[s["image_id"] for s in batch] for batch in batches] != [[s["image_id"] for s in batch] for batch in other]


def test_nothing_starts_before_the_first_batch(cfg):
    cfg.DATALOADER.NUM_WORKERS = 2
    loader = build_resumable_train_loader(cfg, seed=3)
    iterator = iter(loader)
    assert not multiprocessing.active_children()
    loader.set_start_iter(5)  # still counts
    batch = next(iterator)
    assert len(multiprocessing.active_children()) == 2
    del iterator
    cfg.DATALOADER.NUM_WORKERS = 0
    assert_same([batch], take(build_resumable_train_loader(cfg, seed=3), 5, 1))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_go_on_after_a_signal_to_all_processes(cfg, number):
    """The training still finishes its iteration, and ends the workers itself."""
    cfg.DATALOADER.NUM_WORKERS = 2
    iterator = iter(build_resumable_train_loader(cfg, seed=3))
    batches = [next(iterator), next(iterator)]  # one from each worker: both ignore the signal by now
    for worker in multiprocessing.active_children():
        os.kill(worker.pid, number)
    batches += islice(iterator, 4)
    workers = multiprocessing.active_children()
    del iterator
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    cfg.DATALOADER.NUM_WORKERS = 0
    assert_same(batches, take(build_resumable_train_loader(cfg, seed=3), 0, 6))


def test_the_models_random_numbers_are_left_alone(cfg):
    def draw():
        return random.random(), np.random.rand(), torch.rand(1).item()

    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    expected = draw()
    for workers in (0, 1):
        cfg.DATALOADER.NUM_WORKERS = workers
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        take(build_resumable_train_loader(cfg, seed=3), 0, 2)
        assert draw() == expected


def test_samples_randomness_covers_all_three_generators():
    def draw(seed, position):
        with seeded_randomness(seed, position):
            return random.random(), np.random.rand(), torch.rand(1).item()

    first = draw(1, 2)
    assert draw(1, 2) == first
    for other in (draw(1, 3), draw(2, 2)):
        assert all(a != b for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_one_line(cfg, coco_folder, workers):
    (coco_folder.images / "1.jpg").write_bytes(b"no image")
    cfg.D2_MASKRCNN.DATA.TRAIN_JSON = str(coco_folder.json_file)
    register_own_data(cfg)
    cfg.DATALOADER.NUM_WORKERS = workers
    with pytest.raises(UserError, match=r"^\S+1\.jpg: not a readable image.*$"):
        take(build_resumable_train_loader(cfg, seed=0), 0, 4)


@pytest.mark.parametrize(("filter_empty", "expected"), [(True, {10, 11, 12}), (False, {10, 11, 12, 13})])
def test_images_without_objects(cfg, coco_folder, filter_empty, expected):
    cfg.D2_MASKRCNN.DATA.TRAIN_JSON = str(coco_folder.json_file)
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = filter_empty
    register_own_data(cfg)
    batches = take(build_resumable_train_loader(cfg, seed=0), 0, 6)
    assert {sample["image_id"] for batch in batches for sample in batch} == expected


@pytest.mark.parametrize(("grouping", "mixed"), [(True, False), (False, True)])
def test_aspect_ratio_grouping(cfg, coco_folder, grouping, mixed):
    cfg.D2_MASKRCNN.DATA.TRAIN_JSON = str(coco_folder.json_file)
    cfg.DATALOADER.ASPECT_RATIO_GROUPING = grouping
    cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = False
    register_own_data(cfg)
    batches = take(build_resumable_train_loader(cfg, seed=0), 0, 8)
    wide = [{sample["width"] > sample["height"] for sample in batch} for batch in batches]
    assert any(len(kinds) == 2 for kinds in wide) == mixed


def test_repeat_factor_sampling_favours_rare_categories(cfg, coco_folder):
    cfg.D2_MASKRCNN.DATA.TRAIN_JSON = str(coco_folder.json_file)  # cat in two images of three, dog in one
    cfg.DATALOADER.SAMPLER_TRAIN, cfg.DATALOADER.REPEAT_THRESHOLD = "RepeatFactorTrainingSampler", 3.0
    cfg.INPUT.CROP.ENABLED = False
    register_own_data(cfg)
    batches = take(build_resumable_train_loader(cfg, seed=0), 0, 100)
    seen = np.bincount([sample["image_id"] - 10 for batch in batches for sample in batch])
    factors = np.sqrt(3.0 / np.array([2 / 3, 1 / 3, 2 / 3]))
    np.testing.assert_allclose(seen / seen.sum(), factors / factors.sum(), atol=0.02)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("DATALOADER.SAMPLER_TRAIN", "Nope", r"SAMPLER_TRAIN is 'Nope'; expected one of TrainingSampler, Repeat"),
        ("SOLVER.IMS_PER_BATCH", 3, r"IMS_PER_BATCH is 3: expected a multiple of the number of processes, 2"),
    ],
)
def test_bad_config(cfg, key, value, expected):
    cfg.merge_from_list([key, value])
    with pytest.raises(UserError, match=expected):
        build_resumable_train_loader(cfg, seed=0, rank=0, world_size=2)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda record: record.pop("annotations"), r"the record of \S+ has no 'annotations'"),
        (lambda record: record["annotations"][0].update(category_id=80), "category_id 80; expected 0 to 79"),
        (lambda record: record["annotations"][0].update(category_id=-1), "category_id -1; expected 0 to 79"),
        (lambda record: record["annotations"][0].pop("category_id"), "category_id None"),
    ],
)
def test_records_registered_in_python(cfg, change, expected):
    records = [dict(record) for record in DatasetCatalog.get(cfg.DATASETS.TRAIN[0])]
    change(records[3])
    DatasetCatalog.register("test_records_in_python", lambda: records)
    cfg.DATASETS.TRAIN, cfg.DATALOADER.FILTER_EMPTY_ANNOTATIONS = ("test_records_in_python",), False
    try:
        with pytest.raises(UserError, match=expected):
            build_resumable_train_loader(cfg, seed=0)
    finally:
        DatasetCatalog.remove("test_records_in_python")


def test_bad_start(cfg):
    with pytest.raises(ValueError, match="-1"):
        build_resumable_train_loader(cfg, seed=0).set_start_iter(-1)


def naive_batches(groups, batch_size, stream):
    """Group one image at a time, as Detectron2 documents its aspect-ratio grouping."""
    waiting = {}
    for index in stream:
        queue = waiting.setdefault(groups[index], [])
        queue.append(index)
        if len(queue) == batch_size:
            yield list(queue)
            queue.clear()


def batches_of(stream, start, count):
    return [batch.tolist() for batch in islice(stream.batches_from(start), count)]


def test_stream_of_no_images():
    with pytest.raises(ValueError, match="at least 1 image"):
        BatchStream(np.zeros(0), 2, seed=0)


@pytest.mark.parametrize("count", [1, 7, 100])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize("repeated", [False, True])
def test_grouping_equals_one_image_at_a_time(count, batch_size, repeated, monkeypatch):
    monkeypatch.setattr("d2_maskrcnn.data.loader.SHUFFLED_TOGETHER", 150)
    rng = np.random.default_rng(count)
    groups = rng.integers(0, 2, count)
    stream = BatchStream(groups, batch_size, seed=5, repeats=1 + 2 * rng.random(count) if repeated else None)
    ungrouped = BatchStream(np.zeros(count), 1, seed=5, repeats=stream.repeats)
    flat = np.concatenate(batches_of(ungrouped, 0, 3000)).tolist()
    expected = list(naive_batches(groups, batch_size, flat))
    assert len(expected) > 100
    assert batches_of(stream, 0, len(expected)) == expected


@pytest.mark.parametrize("start", [0, 1, 13, 500])
def test_stream_entered_late_continues_the_same(start):
    stream = BatchStream(np.arange(37) % 2, 4, seed=1)
    assert batches_of(stream, start, 50) == batches_of(stream, 0, start + 50)[start:]


def test_every_epoch_contains_every_image_once_in_a_new_order():
    stream = BatchStream(np.zeros(20), 5, seed=2)
    epochs = np.array(batches_of(stream, 0, 400)).reshape(100, 20)
    assert (np.sort(epochs, axis=1) == np.arange(20)).all()
    assert len({tuple(epoch) for epoch in epochs.tolist()}) == 100
    first = np.bincount(epochs[:, 0], minlength=20)
    assert first.max() < 20  # no image is favoured: 5 expected of each


def test_seed_determines_the_stream():
    streams = [BatchStream(np.zeros(20), 5, seed=seed) for seed in (0, 0, 1)]
    first, again, other = (batches_of(stream, 0, 8) for stream in streams)
    assert first == again != other


def test_repeat_factors_are_the_mean_counts_per_epoch():
    repeats = np.array([1.0, 1.5, 3.0, 2.25])
    stream = BatchStream(np.zeros(4), 31, seed=0, repeats=repeats)
    counts = np.bincount(np.concatenate(batches_of(stream, 0, 1000)))
    np.testing.assert_allclose(counts / counts.sum(), repeats / repeats.sum(), atol=0.005)
