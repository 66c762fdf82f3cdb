import errno
import os
from pathlib import Path

import pytest

from pgt.core.errors import InputError
from pgt.core.files import writing


@pytest.mark.parametrize(
    ("number", "mend"),
    [(errno.ENOSPC, r"with [\d,.]+ MB free: make room"), (errno.EDQUOT, "quota raised"), (errno.EFBIG, "ulimit -f")],
)
def test_what_leaves_no_room_is_told_with_its_own_mend(number, mend):
    with pytest.raises(InputError, match=rf"^file: {os.strerror(number)}.*{mend}"), writing(Path("file")):
        raise OSError(number, os.strerror(number))
