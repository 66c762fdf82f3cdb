"""The commands of docs/sweeps.md, one after the other in one folder, as a reader gives them."""

from pathlib import Path

import pytest

from pgt.cli.main import main
from pgt.runs.folder import FINISHED, find
from tests.conftest import ROOT
from tests.test_docs_code import LINES, own_files  # noqa: F401  # a fixture

PAGE = ROOT / "docs/sweeps.md"
PLUGINS = {"hydra/launcher=joblib", "hydra/sweeper=optuna"}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_commands_of_the_page_follow_on_one_another(own_files, capsys):  # noqa: F811
    """Those that need a cluster or a plugin are composed by tests/test_docs_code.py. Runs have two epochs."""
    own_files(PAGE)
    given = 0
    for page, words in LINES:
        if page == PAGE and words[0] == "pgt" and not {"hydra/launcher=slurm", *PLUGINS} & {*words}:
            fewer = ["recipe.epochs=2", "recipe.warmup_epochs=1"] if words[1] == "train" else []
            assert main([*words[1:], *fewer]) == 0, words
            given += 1
    assert given > 8
    done = [summary for _, summary in find(Path("runs"))]
    assert [summary.status for summary in done] == [FINISHED] * 12
    assert {summary.experiment for summary in done} == {"demo/bn", "mine/grid"}
    assert "12 runs: 12 finished" in capsys.readouterr().out
