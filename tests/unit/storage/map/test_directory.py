"""Directories in memory: rows are read one by one or by the chunk, and take little memory."""

import sys
import tracemalloc

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from storage.format.entry import Words
from storage.format.pages import CHUNK_PAGES
from storage.map.directory import SPARSE_ROWS_MAX, Directory, PageSet

SLOTS = st.sets(st.integers(0, CHUNK_PAGES - 1), max_size=2 * SPARSE_ROWS_MAX)


def rows(slots: set[int], seed: int = 1) -> Words:
    made = np.zeros((CHUNK_PAGES, 4), dtype=np.uint64)
    for slot in slots:
        delta_only = slot % 3 == 0
        made[slot] = [0, 0, 3 + seed * 8, slot] if delta_only else [3 + seed * 8, slot, 0, 0]
    return made


@given(st.dictionaries(st.integers(0, 6), SLOTS, max_size=4), st.data())
def test_a_directory_agrees_with_a_dictionary_of_rows(
    chunks: dict[int, set[int]], data: st.DataObject
) -> None:
    directory, model = Directory(), {}
    for number, slots in chunks.items():
        directory.put(number, rows(slots), (number, 1))
        for slot in slots:
            model[number * CHUNK_PAGES + slot] = rows(slots)[slot].tolist()
    for number in range(7):
        assert (directory.chunk(number) == rows(chunks.get(number, set()))).all()
    for page in range(0, 7 * CHUNK_PAGES, 5):
        assert directory.get(page) == model.get(page)
    low = data.draw(st.integers(0, 7 * CHUNK_PAGES))
    end = data.draw(st.integers(low, 7 * CHUNK_PAGES))
    assert [*directory.pages(low, end)] == [page for page in sorted(model) if low <= page < end]
    assert [*directory.pages()] == sorted(model)
    for number in chunks:
        directory.drop(number)
    assert not directory
    assert directory.located == {}


@given(
    st.dictionaries(st.integers(0, 6), SLOTS, max_size=4), st.sets(st.integers(0, 8000)), st.data()
)
def test_a_page_set_agrees_with_a_set(
    chunks: dict[int, set[int]], alone: set[int], data: st.DataObject
) -> None:
    directory, pages = Directory(), PageSet()
    for number, slots in chunks.items():
        directory.put(number, rows(slots), (number, 1))
    pages.add(alone)
    pages.add_stored(directory)
    model = {*alone, *directory.pages()}
    low = data.draw(st.integers(0, 9000))
    end = data.draw(st.integers(low, 9000))
    assert [*pages.between(low, end)] == sorted(page for page in model if low <= page < end)
    assert all((page in pages) == (page in model) for page in range(0, 8000, 7))


def test_a_directory_gives_copies_of_its_chunks() -> None:
    for slots in ({7}, set(range(CHUNK_PAGES))):
        directory = Directory()
        directory.put(0, rows(slots), (1, 1))
        directory.chunk(0)[7] = 0
        assert directory.get(7) == rows(slots)[7].tolist()


def test_a_few_pages_take_little_memory() -> None:
    """Goal: a thousand layers, each with a few changed pages in 256 GiB, do not take gigabytes."""
    directories = [Directory() for _ in range(100)]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for directory in directories:
        directory.put(0, rows({5, 900}), (1, 1))
    grown = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert sys.getsizeof(rows({1})) > 32 << 10
    assert grown / len(directories) < 1024
