"""Blocks that are written often are told from the others, in a fixed amount of memory."""

import random

import numpy as np

from storage.cleaning.heat import COUNTERS_MAX, HALVE_AFTER, HOT, Heat


def hot(heat: Heat, layer: int, *blocks: int) -> list[bool]:
    found: list[bool] = heat.is_hot(layer, np.array(blocks, dtype=np.uint64)).tolist()
    return found


def test_blocks_that_are_written_often_are_hot() -> None:
    heat = Heat(1 << 16)
    for _ in range(HOT):
        assert hot(heat, 5, 7, 1 << 37) == [False, False]
        heat.written(5, [7, 1 << 37])
    assert hot(heat, 5, 7, 1 << 37, 8) == [True, True, False]


def test_one_block_number_counts_separately_in_two_layers() -> None:
    heat = Heat(1 << 16)
    for _ in range(HOT):
        heat.written(5, range(1000))
    assert not any(hot(heat, 6, *range(1000)))


def test_old_writes_are_forgotten() -> None:
    heat = Heat(1 << 12)
    for _ in range(300):  # more than a counter takes
        heat.written(1, [7])
    assert hot(heat, 1, 7) == [True]
    others = range(10, 10 + (1 << 10))
    for _ in range(10 * HALVE_AFTER * (1 << 12) // len(others)):
        heat.written(1, others)
    assert hot(heat, 1, 7) == [False]


def test_a_huge_pool_takes_no_more_memory_and_its_hot_blocks_are_found() -> None:
    heat = Heat(1 << 40)
    assert heat._counts.nbytes == COUNTERS_MAX
    coin = random.Random(1)
    few = [coin.randrange(1 << 40) for _ in range(100)]
    for _ in range(200):
        heat.written(1, few)
        heat.written(1, [coin.randrange(1 << 40) for _ in range(1000)])
    assert all(hot(heat, 1, *few))
    others = [coin.randrange(1 << 40) for _ in range(1000)]
    assert sum(hot(heat, 1, *others)) < 10
