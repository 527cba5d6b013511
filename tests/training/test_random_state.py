"""All three generators go on from where they were, through a checkpoint too."""

from __future__ import annotations

import random

import numpy as np
import torch

from deqlm.training import (
    get_random_state,
    load_checkpoint,
    random_state_kept,
    save_checkpoint,
    set_random_state,
)


def draw():
    return random.random(), random.gauss(0, 1), np.random.rand(), np.random.randn(), torch.randn(3).tolist()


def test_the_state_goes_through_a_checkpoint(tmp_path):
    draw()  # numpy and Python now hold the second half of a pair of normal numbers
    path = save_checkpoint(tmp_path, 0, get_random_state())
    first = draw()
    draw()
    set_random_state(load_checkpoint(path)[1])
    assert draw() == first


def test_what_is_drawn_inside_does_not_count():
    state = get_random_state()
    with random_state_kept():
        draw()
    after = draw()
    set_random_state(state)
    assert draw() == after
