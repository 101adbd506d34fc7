import multiprocessing
from collections import Counter
from itertools import chain, islice

import pytest
import torch
from torch.utils.data import SequentialSampler

from detectron2.data.samplers import (
    GroupedBatchSampler,
    InferenceSampler,
    RandomSubsetTrainingSampler,
    RepeatFactorTrainingSampler,
    TrainingSampler,
)
from detectron2.utils import comm


def take(sampler, count):
    return list(islice(sampler, count))


def test_training_sampler_gives_one_permutation_after_the_other():
    indices = take(TrainingSampler(7, seed=3), 21)
    passes = [indices[start : start + 7] for start in (0, 7, 14)]
    assert all(sorted(one) == list(range(7)) for one in passes)
    assert len({tuple(one) for one in passes}) == 3
    assert take(TrainingSampler(7, seed=3), 21) == indices
    assert take(TrainingSampler(7, seed=4), 21) != indices
    # What Detectron2 0.6 gives for this seed.
    assert indices == [5, 3, 4, 6, 0, 2, 1, 2, 6, 3, 1, 5, 0, 4, 0, 6, 3, 4, 2, 5, 1]


def test_training_sampler_without_shuffling():
    assert take(TrainingSampler(3, shuffle=False), 7) == [0, 1, 2, 0, 1, 2, 0]


@pytest.mark.parametrize(("size", "error"), [(0, ValueError), (-1, ValueError), (2.5, TypeError)])
def test_training_sampler_refuses_bad_sizes(size, error):
    with pytest.raises(error, match=str(size)):
        TrainingSampler(size)


def test_a_random_subset_stays_the_same_in_all_passes():
    indices = take(RandomSubsetTrainingSampler(10, 0.5, seed_shuffle=3, seed_subset=4), 15)
    passes = [indices[start : start + 5] for start in (0, 5, 10)]
    assert len({frozenset(one) for one in passes}) == 1
    assert len(set(passes[0])) == 5
    assert indices[:12] == [4, 0, 6, 7, 9, 0, 4, 9, 7, 6, 4, 7]  # as Detectron2 0.6 for these seeds
    fixed = take(RandomSubsetTrainingSampler(10, 0.35, shuffle=False, seed_subset=4), 6)
    assert fixed == [0, 4, 9, 0, 4, 9]


@pytest.mark.parametrize("ratio", [0.0, 0.05, 1.5, -1])
def test_a_random_subset_needs_a_sensible_ratio(ratio):
    with pytest.raises(ValueError, match=str(ratio)):
        RandomSubsetTrainingSampler(10, ratio)


def test_repeat_factors_are_those_of_the_lvis_paper():
    annotations = ([0, 1], [0, 0], [0], [])
    records = [{"annotations": [{"category_id": c} for c in categories]} for categories in annotations]
    # Frequencies: category 0 in 3 of 4 images, category 1 in 1 of 4.
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.6)
    assert factors.tolist() == pytest.approx([(0.6 / 0.25) ** 0.5, 1, 1, 1])
    factors = RepeatFactorTrainingSampler.repeat_factors_from_category_frequency(records, 0.6, sqrt=False)
    assert factors.tolist() == pytest.approx([0.6 / 0.25, 1, 1, 1])
    assert RepeatFactorTrainingSampler.repeat_factors_from_category_frequency([], 0.6).shape == (0,)


def test_elements_come_as_often_as_their_factors_say():
    factors = torch.tensor([1.0, 2.5, 1.3, 3.0])
    sampler = RepeatFactorTrainingSampler(factors, seed=0)
    counts = Counter(take(sampler, 7800))
    expected = (factors / factors.sum() * 7800).tolist()
    for index, count in enumerate(expected):
        assert counts[index] == pytest.approx(count, rel=0.05)
    assert take(RepeatFactorTrainingSampler(torch.tensor([1.0, 2.0]), shuffle=False), 6) == [0, 1, 1, 0, 1, 1]
    # As Detectron2 0.6 for this seed.
    sampler = RepeatFactorTrainingSampler(torch.tensor([1.0, 2.5, 1.3, 1.7]), seed=3)
    assert take(sampler, 12) == [0, 3, 1, 1, 2, 3, 2, 1, 1, 2, 3, 1]


@pytest.mark.parametrize("factors", [[], [-1.0, 2.0], [0.0, 0.0]])
def test_repeat_factors_must_make_sense(factors):
    with pytest.raises(ValueError, match="repeat factors"):
        RepeatFactorTrainingSampler(torch.tensor(factors))


@pytest.mark.parametrize("size", [1, 3, 10, 17])
@pytest.mark.parametrize("world_size", [1, 4])
def test_inference_covers_everything_once(size, world_size):
    parts = [list(InferenceSampler._get_local_indices(size, world_size, rank)) for rank in range(world_size)]
    assert list(chain.from_iterable(parts)) == list(range(size))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_inference_sampler_in_one_process():
    assert list(InferenceSampler(4)) == [0, 1, 2, 3]
    assert len(InferenceSampler(4)) == 4
    with pytest.raises(ValueError, match="0"):
        InferenceSampler(0)


def ask_samplers(rank, meeting, answers):
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    answers.put((rank, take(TrainingSampler(6), 6), list(InferenceSampler(5))))
    comm.destroy_process_groups()


def test_two_processes_agree_on_a_seed_and_share_the_work(tmp_path):
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    jobs = [context.Process(target=ask_samplers, args=(rank, tmp_path / "meeting", answers)) for rank in range(2)]
    for job in jobs:
        job.start()
    (_, train0, test0), (_, train1, test1) = sorted(answers.get(timeout=60) for _ in jobs)
    for job in jobs:
        job.join(60)
    interleaved = [index for pair in zip(train0, train1, strict=True) for index in pair]
    assert sorted(interleaved[:6]) == sorted(interleaved[6:]) == list(range(6))
    assert (test0, test1) == ([0, 1, 2], [3, 4])


def test_batches_of_one_group():
    sampler = GroupedBatchSampler(SequentialSampler(range(8)), [0, 0, 1, 0, 1, 0, 1, 1], 2)
    assert list(sampler) == [[0, 1], [2, 4], [3, 5], [6, 7]]
    with pytest.raises(ValueError, match="Sampler"):
        GroupedBatchSampler([1, 2], [0, 0], 1)
