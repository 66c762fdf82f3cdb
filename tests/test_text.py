import pytest

from pgt.text import some


@pytest.mark.parametrize(
    ("count", "first", "both"),
    [(0, "", ""), (1, "0", "0"), (3, "0, 1, 2", "0, 1, 2"), (4, "0, 1, 2, ...", "0, 1, 2, 3"),
     (9, "0, 1, 2, ...", "0, 1, 2, ..., 8")],
)  # fmt: skip
def test_lists_are_cut_where_they_get_long(count, first, both):
    assert some(range(count), 3) == first
    assert some(range(count), 3, last=True) == both
