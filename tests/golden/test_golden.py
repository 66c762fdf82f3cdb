"""20-step loss curves: a change that should not alter results shows the identical curve.

Record them anew, when a change means to alter results: python -m tests.golden.test_golden
"""

import json
from contextlib import chdir
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from pgt.launch.run import run
from pgt.runs.folder import find, read_metrics
from tests.conftest import compose

FOLDER = Path(__file__).resolve().parent
METHODS = ("baseline", "pgt")
SETTING = (
    "experiment=demo/bn",
    "recipe.epochs=3",
    "recipe.warmup_epochs=1",
    "recipe.global_batch=128",
    "trainer.log_every=1",
    "trainer.precision=fp64",  # in float32 batch norm makes 1e-3 of a thread count's rounding within 20 steps
)


def losses(method):
    """Mean loss of the epoch so far after each of 20 steps on digits (7 steps an epoch)."""
    config = compose(*SETTING, f"method={method}", f"paths.runs={method}")
    run(config)
    [(folder, _)] = find(Path(method))
    return [record["train_loss"] for record in read_metrics(folder) if record["event"] == "step"][:20]


@pytest.mark.parametrize("method", METHODS)
def test_the_curve_is_the_recorded_one(method):
    recorded = json.loads((FOLDER / f"{method}.json").read_text())
    assert len(recorded) == 20
    assert losses(method) == pytest.approx(recorded, abs=1e-6)


if __name__ == "__main__":
    with TemporaryDirectory() as runs, chdir(runs):
        for name in METHODS:
            (FOLDER / f"{name}.json").write_text(json.dumps(losses(name), indent=1) + "\n")
