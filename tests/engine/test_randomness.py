import random

import numpy as np
import torch

from d2_maskrcnn.engine.randomness import choose_seed, seed_iteration


def draw():
    return random.random(), float(np.random.rand()), float(torch.rand(()))


def test_numbers_are_a_function_of_seed_iteration_and_rank():
    seen = set()
    for key in [(0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0), (2**31 - 1, 10**6, 7)]:
        seed_iteration(*key)
        first = draw()
        seed_iteration(*key)
        assert draw() == first
        seen.update(first)
    assert len(seen) == 15


def test_choose_seed():
    assert choose_seed(0) == 0 and choose_seed(5) == 5
    fresh = {choose_seed(-1) for _ in range(4)}
    assert len(fresh) == 4 and all(0 <= seed < 2**31 for seed in fresh)
