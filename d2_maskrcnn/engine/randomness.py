"""Random numbers that are a function of (seed, iteration, rank), so that they need not be saved to be continued."""

import random

import numpy as np
import torch


def seed_iteration(seed: int, iteration: int, rank: int) -> None:
    """Seeds Python, NumPy and PyTorch (all devices) for one iteration of one rank.

    A training that was killed and resumed so draws the same anchors and proposals as one that never stopped, whatever
    else drew random numbers in between.
    """
    words = np.random.SeedSequence((seed, iteration, rank)).generate_state(3)
    random.seed(int(words[0]))
    np.random.seed(int(words[1]))
    torch.manual_seed(int(words[2]))


def choose_seed(configured: int) -> int:
    """``configured`` (``cfg.SEED``) if it is not negative, else a fresh seed from the operating system, below 2**31."""
    return configured if configured >= 0 else int(np.random.SeedSequence().generate_state(1)[0]) & 0x7FFFFFFF
