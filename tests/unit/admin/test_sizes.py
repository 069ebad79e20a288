"""Sizes as people write them, read and printed."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from admin.sizes import (
    GIB,
    KIB,
    MIB,
    PIB,
    TIB,
    VOLUME_BYTES_MAX,
    SizeError,
    compact,
    human,
    parse_size,
    parse_volume_size,
    volume_size,
)


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("512", 512),
        ("512B", 512),
        ("1k", KIB),
        ("20G", 20 * GIB),
        ("20g", 20 * GIB),
        ("20GiB", 20 * GIB),
        (" 20 GiB ", 20 * GIB),
        ("20gib", 20 * GIB),
        ("1.5G", 1536 * MIB),
        ("1.5 TiB", 1536 * GIB),
        ("2P", 2 * PIB),
        ("1E", 1024 * PIB),
        ("0.1K", 102),
    ],
)
def test_sizes_are_read_as_qemu_img_reads_them(text: str, size_bytes: int) -> None:
    assert parse_size(text) == size_bytes


@pytest.mark.parametrize(
    "text",
    ["", "G", "-1G", "1.G", ".5G", "1e3", "20GB", "1.5", "1iB", "1 G G", "0x10", "20X", "1_0"],
)
def test_other_text_is_refused(text: str) -> None:
    with pytest.raises(SizeError):
        parse_size(text)


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("0", "more than zero"),
        ("-5G", "more than zero"),
        ("5000", "nearest is 4K or 8K"),
        ("1", "nearest is 4K"),
        ("8P", "at most 4P"),
        ("20GB", "write 20G"),
        ("1.5", "such as 1.5G"),
        ("twenty", "such as 20G"),
    ],
)
def test_a_refusal_names_an_acceptable_size(text: str, advice: str) -> None:
    with pytest.raises(SizeError, match=advice):
        parse_volume_size(text)


@given(st.integers(1, VOLUME_BYTES_MAX))
def test_the_advised_sizes_are_accepted(size_bytes: int) -> None:
    try:
        assert volume_size(size_bytes) == size_bytes
    except SizeError as error:
        offers = str(error).rpartition("the nearest is ")[2].split(" or ")
        near = [parse_volume_size(offer) for offer in offers]
        assert near == sorted(near, key=lambda offer: abs(offer - size_bytes))
        assert all(abs(offer - size_bytes) < 4 * KIB for offer in near)


@given(st.integers(0, 1 << 63))
def test_compact_is_exact(size_bytes: int) -> None:
    assert parse_size(compact(size_bytes)) == size_bytes


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KIB, "1 KiB"),
        (20 * GIB, "20 GiB"),
        (1536 * GIB, "1.5 TiB"),
        (TIB - 1, "1023.9 GiB"),
    ],
)
def test_human_sizes_are_short_and_never_rounded_up(size_bytes: int, text: str) -> None:
    assert human(size_bytes) == text
