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
        ([1, 0, 0, 0, 0, -1], 4, 0.5, 1, 3),  # background fills up
        ([1, 1, 1, 1, 0], 4, 0.25, 1, 1),  # objects don't
        ([1, 1, 0], 100, 1.0, 2, 1),
    ],
)
def test_numbers(labels, num_samples, fraction, positives, negatives):
    labels = torch.tensor(labels, dtype=torch.int8)
    positive, negative = sample_labels(labels, num_samples, fraction, background=0)
    assert (len(positive), len(negative)) == (positives, negatives)
    assert bool((labels[positive] == 1).all()) and bool((labels[negative] == 0).all())
    drawn = torch.cat((positive, negative))
    assert len(drawn.unique()) == len(drawn)


def test_the_background_may_have_another_label():
    labels = torch.tensor([0, 1, 3, 3, -1])
    positive, negative = sample_labels(labels, 10, 0.5, background=3)
    assert sorted(positive.tolist()) == [0, 1] and sorted(negative.tolist()) == [2, 3]


def test_random_and_repeatable():
    labels = torch.tensor([0] * 100 + [1] * 100)
    draws = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        draws.append(torch.cat(sample_labels(labels, 20, 0.5, background=0)).tolist())
    assert draws[0] == draws[1] != draws[2]


def test_every_element_gets_its_turn():
    torch.manual_seed(0)
    labels = torch.tensor([0] * 10 + [1] * 10)
    drawn = torch.cat([torch.cat(sample_labels(labels, 4, 0.5, background=0)) for _ in range(200)])
    assert drawn.bincount(minlength=20).min() > 10
