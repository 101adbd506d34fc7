import pytest
import torch

from d2_maskrcnn.modeling.sampling import sample_labels


@pytest.mark.parametrize(
    ("labels", "num_samples", "fraction", "positives", "negatives"),
    [
        ([], 8, 0.5, 0, 0),
        ([-1, -1], 8, 0.5, 0, 0),
        ([1, 1, 0, 0, 0], 0, 0.5, 0, 0),
        ([1, 1, 1, 0, 0, 0, 0], 4, 0.5, 2, 2),
        ([1, 0, 0, 0, 0, -1], 4, 0.5, 1, 3),  # background takes the place of objects
        ([1, 1, 1, 1, 0], 4, 0.25, 1, 1),  # but not the reverse
        ([1, 1, 0], 100, 1.0, 2, 1),
    ],
)
def test_numbers(labels, num_samples, fraction, positives, negatives):
    labels = torch.tensor(labels, dtype=torch.int8)
    positive, negative = sample_labels(labels, num_samples, fraction, bg_label=0)
    assert (len(positive), len(negative)) == (positives, negatives)
    assert bool((labels[positive] == 1).all()) and bool((labels[negative] == 0).all())
    sampled = torch.cat((positive, negative))
    assert len(sampled.unique()) == len(sampled)


def test_background_label():
    labels = torch.tensor([0, 1, 3, 3, -1])
    positive, negative = sample_labels(labels, 10, 0.5, bg_label=3)
    assert sorted(positive.tolist()) == [0, 1] and sorted(negative.tolist()) == [2, 3]


def test_random_and_repeatable():
    labels = torch.tensor([0] * 100 + [1] * 100)
    samples = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        samples.append(torch.cat(sample_labels(labels, 20, 0.5, bg_label=0)).tolist())
    assert samples[0] == samples[1] != samples[2]


def test_generator():
    labels = torch.tensor([0] * 100 + [1] * 100)
    state = torch.get_rng_state()
    samples = [
        torch.cat(sample_labels(labels, 20, 0.5, 0, torch.Generator().manual_seed(seed))).tolist() for seed in (0, 0, 1)
    ]
    assert samples[0] == samples[1] != samples[2]
    assert torch.equal(torch.get_rng_state(), state)


def test_every_element_is_sampled_eventually():
    torch.manual_seed(0)
    labels = torch.tensor([0] * 10 + [1] * 10)
    sampled = torch.cat([torch.cat(sample_labels(labels, 4, 0.5, bg_label=0)) for _ in range(200)])
    assert sampled.bincount(minlength=20).min() > 10
