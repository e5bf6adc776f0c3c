"""Which sizes a person may allow, and which of them a batch is padded to."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shmbatch.contract.sizes import allowed_sizes, padded_size
from shmbatch.errors import ConfigError

some_sizes = st.sets(st.integers(1, 65_536), min_size=1, max_size=20).map(sorted).map(tuple)


@pytest.mark.parametrize(
    ("sizes", "kept"),
    [
        (None, None),
        ((32,), (32,)),
        ([1, 8, 32], (1, 8, 32)),
        (tuple(range(1, 33)), tuple(range(1, 33))),
    ],
)
def test_increasing_sizes_up_to_that_of_a_full_batch_are_kept(sizes: Any, kept: Any) -> None:
    assert allowed_sizes(sizes, 32) == kept


def test_the_largest_of_all_sizes_is_allowed() -> None:
    assert allowed_sizes((65_536,), 65_536) == (65_536,)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (
            32,
            "batch_sizes is 32; use a tuple of ints that ends with max_batch_size, as in (1, 32)",
        ),
        (
            "1, 32",
            "batch_sizes is '1, 32'; "
            "use a tuple of ints that ends with max_batch_size, as in (1, 32)",
        ),
        (
            {1, 32},
            "batch_sizes is set; use a tuple of ints that ends with max_batch_size, as in (1, 32)",
        ),
        (
            range(1, 33),
            "batch_sizes is range; "
            "use a tuple of ints that ends with max_batch_size, as in (1, 32)",
        ),
        (
            (),
            "batch_sizes is empty; end it with max_batch_size, as in (1, 32), "
            "or drop it to allow all sizes",
        ),
        ((1, 8.0, 32), "batch_sizes[1] is 8.0; use an int from 1 to 65536"),
        ((True, 32), "batch_sizes[0] is True; use an int from 1 to 65536"),
        ((0, 32), "batch_sizes[0] is 0; use an int from 1 to 65536"),
        ((1, 65_537), "batch_sizes[1] is 65537; use an int from 1 to 65536"),
        ((None, 32), "batch_sizes[0] is NoneType; use an int from 1 to 65536"),
        (
            (1, 8, 4, 32),
            "batch_sizes[2] is 4, after 8; write each size once, the smallest first",
        ),
        ((1, 32, 32), "batch_sizes[2] is 32, after 32; write each size once, the smallest first"),
        (
            (1, 8),
            "batch_sizes ends with 8, but max_batch_size is 32; "
            "make them the same, for a full batch is to have an allowed size",
        ),
        (
            (1, 64),
            "batch_sizes ends with 64, but max_batch_size is 32; "
            "make them the same, for a full batch is to have an allowed size",
        ),
    ],
)
def test_other_sizes_are_refused_with_what_is_wrong_and_what_is_right(
    sizes: Any, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        allowed_sizes(sizes, 32)

    assert str(caught.value) == message


def test_the_example_in_a_refusal_is_one_that_is_accepted() -> None:
    with pytest.raises(ConfigError, match=r"as in \(1,\), or drop it"):
        allowed_sizes((), 1)

    assert allowed_sizes((1,), 1) == (1,)


@pytest.mark.parametrize(
    ("count", "size"), [(1, 1), (2, 8), (7, 8), (8, 8), (9, 32), (31, 32), (32, 32)]
)
def test_a_batch_is_padded_to_the_next_allowed_size(count: int, size: int) -> None:
    assert padded_size((1, 8, 32), count) == size


@given(some_sizes, st.data())
def test_no_allowed_size_between_a_count_and_what_it_is_padded_to(
    sizes: tuple[int, ...], data: st.DataObject
) -> None:
    count = data.draw(st.integers(1, sizes[-1]))

    assert padded_size(sizes, count) == min(size for size in sizes if size >= count)
