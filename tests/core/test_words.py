import os
from pathlib import Path

import pytest

from pgt.core.words import printable, ranges, some


@pytest.mark.parametrize(
    ("count", "first", "both"),
    [(0, "", ""), (1, "0", "0"), (3, "0, 1, 2", "0, 1, 2"), (4, "0, 1, 2, ...", "0, 1, 2, 3"),
     (9, "0, 1, 2, ...", "0, 1, 2, ..., 8")],
)  # fmt: skip
def test_lists_are_cut_where_they_get_long(count, first, both):
    assert some(range(count), 3) == first
    assert some(range(count), 3, last=True) == both


def test_any_name_is_one_line_of_utf8():
    name = os.fsdecode(b"b\xc3\xa4r\n\xff\x1b .jpg")
    assert printable(Path("a") / name) == "a/bär\\n\\udcff\\x1b .jpg"
    assert some([name], 1).encode()


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([], ""),
        ([3], "3"),
        ([1, 0], "0, 1"),
        ([2, 0, 1, 1], "0–2"),
        ([0, 2, 4, 5, 6], "0, 2, 4–6"),
        (range(2000), "0–1999"),
    ],
)
def test_ranges_of_numbers(numbers, text):
    assert ranges(numbers) == text
