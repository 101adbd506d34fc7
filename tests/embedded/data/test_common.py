import os
import pickle
import re
import sys
from itertools import chain, islice

import pytest
from torch.utils.data import DataLoader, Dataset, IterableDataset

from detectron2.data import AspectRatioGroupedDataset, DatasetFromList, MapDataset, ToIterableDataset
from detectron2.data.build import trivial_batch_collator
from detectron2.data.samplers import TrainingSampler


class Count(IterableDataset):
    def __init__(self, size):
        self.size = size

    def __iter__(self):
        return iter(range(self.size))


def only_odd(number):
    return number if number % 2 else None


@pytest.mark.parametrize("serialize", [True, False])
@pytest.mark.parametrize("records", [[], [{"a": 1}], [{"a": 1}, {"b": [2, "x"]}, None]])
def test_a_list_as_a_dataset(records, serialize):
    dataset = DatasetFromList(records, serialize=serialize)
    assert len(dataset) == len(records)
    assert [dataset[index] for index in range(len(records))] == records
    assert list(dataset) == records
    with pytest.raises(IndexError, match=f"{len(records)} is out of range"):
        dataset[len(records)]


@pytest.mark.parametrize("serialize", [True, False])
def test_what_a_dataset_hands_out_is_a_copy(serialize):
    dataset = DatasetFromList([{"a": [1]}], copy=True, serialize=serialize)
    dataset[0]["a"].append(2)
    assert dataset[0] == {"a": [1]}
    assert dataset[-1] == {"a": [1]}


def test_without_copies_a_dataset_hands_out_its_own_elements():
    record = {"a": [1]}
    assert DatasetFromList([record], copy=False, serialize=False)[0] is record


def test_a_list_can_be_serialised_in_another_way():
    assert DatasetFromList([3, 4], serialize=lambda elements: tuple(e + 1 for e in elements))[1] == 5


def private_memory() -> int:
    """Return the bytes of private, modified memory of this process."""
    with open("/proc/self/smaps_rollup") as file:
        return int(re.search(r"Private_Dirty:\s+(\d+) kB", file.read())[1]) * 1024


class ReadsEverything(Dataset):
    """Each element: the process, and by how much its private memory grew when it read the whole dataset."""

    def __init__(self, dataset):
        self.dataset = dataset

    def __len__(self):
        return 2

    def __getitem__(self, index):
        before = private_memory()
        for element in range(len(self.dataset)):
            self.dataset[element]
        return os.getpid(), private_memory() - before


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and relies on fork")
@pytest.mark.parametrize("serialize", [True, False])
def test_workers_share_the_serialised_dataset(serialize):
    records = [{"id": i, "polygon": [float(i + j) for j in range(60)]} for i in range(20_000)]
    size = 20_000 * 60 * 24  # what the floats alone take as objects: 29 MB
    dataset = DatasetFromList(records, copy=False, serialize=serialize)
    loader = DataLoader(
        ReadsEverything(dataset),
        batch_size=1,
        num_workers=2,
        collate_fn=trivial_batch_collator,
        multiprocessing_context="fork",
    )
    growth = dict(element for batch in loader for element in batch)
    assert len(growth) == 2
    assert os.getpid() not in growth
    for grown in growth.values():
        if serialize:
            assert grown < 0.1 * size
        else:  # the reason for all this: reading plain objects touches their counts, so that each worker copies them
            assert grown > 0.1 * size


def test_the_serialised_dataset_reaches_spawned_workers():
    dataset = DatasetFromList([{"n": number} for number in range(3)])
    loader = DataLoader(
        dataset, batch_size=1, num_workers=1, collate_fn=trivial_batch_collator, multiprocessing_context="spawn"
    )
    assert list(loader) == [[{"n": 0}], [{"n": 1}], [{"n": 2}]]


def test_mapping():
    dataset = MapDataset([1, 2, 3], lambda number: number * 10)
    assert len(dataset) == 3
    assert [dataset[index] for index in range(3)] == [10, 20, 30]


def test_a_mapped_dataset_can_be_pickled():  # as spawned workers need it
    dataset = pickle.loads(pickle.dumps(MapDataset(DatasetFromList([{"a": 1}, {"a": 2}]), str)))
    assert [dataset[index] for index in range(len(dataset))] == ["{'a': 1}", "{'a': 2}"]
    assert list(pickle.loads(pickle.dumps(MapDataset(Count(3), only_odd)))) == [1]


def test_a_skipped_element_is_replaced_by_one_that_is_not(caplog):
    dataset = MapDataset(list(range(10)), only_odd)
    results = [dataset[index] for index in range(10)]
    assert all(number % 2 for number in results)
    assert results[1::2] == [1, 3, 5, 7, 9]
    assert "skipped element 0" in caplog.text
    with pytest.raises(RuntimeError, match="for all 2 elements"):
        MapDataset([0, 2], only_odd)[1]


def test_mapping_an_iterable_dataset_leaves_skipped_elements_out():
    dataset = MapDataset(Count(6), only_odd)
    assert isinstance(dataset, IterableDataset)
    assert list(dataset) == [1, 3, 5]


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize("workers", [0, 1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_batches_do_not_depend_on_the_number_of_workers(workers, batch_size):
    dataset = ToIterableDataset(list(range(8)), TrainingSampler(8, seed=0), shard_chunk_size=batch_size)
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=workers, collate_fn=trivial_batch_collator)
    expected = list(islice(TrainingSampler(8, seed=0), 12))
    assert list(chain.from_iterable(islice(loader, 12 // batch_size))) == expected


def test_sampling_needs_a_sampler_and_a_dataset_with_indices():
    with pytest.raises(TypeError, match="list"):
        ToIterableDataset([1], [0])
    with pytest.raises(TypeError, match="Count"):
        ToIterableDataset(Count(2), TrainingSampler(2))
    with pytest.raises(ValueError, match="0"):
        ToIterableDataset([1], TrainingSampler(1), shard_chunk_size=0)


def test_batches_hold_wide_images_or_others():
    shapes = [(2, 1), (1, 2), (3, 1), (1, 1), (1, 3), (5, 1), (1, 2)]
    elements = [{"width": width, "height": height, "n": n} for n, (width, height) in enumerate(shapes)]
    batches = [[element["n"] for element in batch] for batch in AspectRatioGroupedDataset(elements, 2)]
    assert batches == [[0, 2], [1, 3], [4, 6]]
    assert list(AspectRatioGroupedDataset([], 2)) == []
    with pytest.raises(ValueError, match="0"):
        AspectRatioGroupedDataset([], 0)
