"""Every figure and the report, from runs that were trained and from planted ones."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pgt.cli.main import main
from pgt.core.errors import InputError
from pgt.reproduction import figures, report
from pgt.reproduction.figures import curves, filters, grid
from pgt.reproduction.figures.style import COLOURS
from pgt.runs.folder import read_epochs
from tests.conftest import TINY, train
from tests.reproduction.helpers import plant


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of two α with recorded norms: two epochs of two steps on synthetic images."""
    root = tmp_path_factory.mktemp("trained") / "runs"
    for alpha in (1, 0.25):
        train(*TINY, "model=resnet20", "recipe.epochs=2", "method=pgt", f"method.alpha={alpha}",
              "record.norms_every=1", f"paths.runs={root}")  # fmt: skip
    return root


def drawn(path):
    """The colours of a picture; it must have a sensible size."""
    with Image.open(path) as picture:
        assert picture.width > 500
        return {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=1 << 24)}


def log(summary):
    """The last epoch's line."""
    lines = (Path("runs/custom") / summary.run_id / "log.txt").read_text().splitlines()
    return next(line for line in lines if line.startswith("epoch 3 "))


def rgb(colour):
    return tuple(bytes.fromhex(colour[1:]))


@pytest.mark.parametrize("number", [4, *(pytest.param(n, marks=pytest.mark.slow) for n in (5, 10)), 6, 8, 14])
def test_a_figure_is_drawn_in_both_formats(trained, number):
    files = figures.save(number, trained, "custom", Path("out/figure"))
    assert [path.name for path in files] == ["figure.svg", "figure.png"]
    colours = drawn(files[1])
    if number in (4, 8):
        assert rgb(COLOURS[1]) in colours  # black is the axes' own, too
    if number in (5, 6, 14):
        assert len({c for c in colours if max(c) - min(c) > 150}) > 30  # a colour for each filter
    assert "<svg" in files[0].read_text()


def test_the_same_picture_is_the_same_file(trained):
    first, second = (figures.save(8, trained, "custom", Path(f"{name}.svg"))[0] for name in "ab")
    assert first.read_bytes() == second.read_bytes()


def test_accuracy_over_alpha_shows_means_and_deviations():
    for alpha, tests in ((1, (80.0, 82.0)), (0.5, (84.0, 85.0)), (0.25, (90.0, 91.0))):
        for seed, test in enumerate(tests):
            plant("demo/bn", "pgt", seed, 90.0, test, curve=(50, 60), overrides=[f"method.alpha={alpha}"])
    [(name, runs)] = grid.read_series(Path("runs"), "demo/bn").items()
    assert name == ""  # the settings do not differ
    assert list(runs.alpha) == [0.25, 0.25, 0.5, 0.5, 1, 1]
    figure = figures.draw(10, Path("runs"), "demo/bn")
    [bars] = figure.axes[1].containers
    line, _, [segments] = bars
    assert list(line.get_xdata()) == [0.25, 0.5, 1]
    assert list(line.get_ydata()) == [90.5, 84.5, 81.0]
    heights = [abs(top - bottom) for (_, bottom), (_, top) in segments.get_segments()]
    assert heights == pytest.approx([2**0.5, 2**0.5, 2 * 2**0.5])  # ± a deviation: 1/√2, 1/√2, 2/√2


def test_runs_that_have_not_measured_their_logits_are_left_out():
    for alpha in (1, 0.5):
        plant("demo/bn", "pgt", 0, 90.0, 80.0, curve=(50, 60), overrides=[f"method.alpha={alpha}"])
    with pytest.raises(InputError, match="no run under runs/demo/bn has measured its logits: draw figure 10"):
        figures.draw(8, Path("runs"), "demo/bn")
    for index, path in enumerate(sorted(Path("runs").rglob("summary.json"))):
        measured = {"test_logit_norm": 5.0 + index, "test_loss": 1.0 + index}
        path.write_text(json.dumps(json.loads(path.read_text()) | measured))
    plant("demo/bn", "pgt", 1, 90.0, 80.0, curve=(50, 60))
    figure = figures.draw(8, Path("runs"), "demo/bn")
    assert len(figure.axes[2].lines[0].get_xdata()) == 2


def test_epochs_to_the_baselines_end():
    plant("demo/bn", "baseline", 0, 90.0, 89.0, curve=(50, 70, 80, 90))
    plant("demo/bn", "pgt", 0, 95.0, 94.0, curve=(60, 91, 93, 95))
    plant("demo/bn", "gc", 0, 70.0, 69.0, curve=(40, 50, 60, 70))
    figure = curves.accuracy_by_epoch(Path("runs"), "demo/bn")
    labels = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert labels == ["baseline: in epoch 4", "gc: never", "pgt α=0.25: in epoch 2"]


def test_the_papers_own_panels_take_their_runs(monkeypatch):
    monkeypatch.setenv("IMAGENET", ".")
    plant("table1/resnet50_cosine_baseline", "baseline", 0, 79.0, 76.5, curve=(30, 50, 76.5))
    plant("fig4/resnet50_pgt_60", "pgt", 0, 79.0, 76.5, curve=(40, 77.6))
    figure = figures.draw(4, Path("runs"), None)
    titles = [axis.get_title() for axis in figure.axes]
    assert titles[:2] == ["ResNet-50", "ResNet-50, 60 epochs against 100"]


def test_zeroed_out_filters_are_named_in_the_figure(trained):
    figure = filters.filter_norms(trained, 5, "custom")
    titles = [axis.get_title() for axis in figure.axes]
    assert "layer 11: 0 of 32 filters zeroed out" in titles[0]
    assert "layer 19: 0 of 64 filters zeroed out" in titles[2]
    assert "features" in titles[4]


def test_amplification_shows_the_fluctuation_of_each_layer_and_marks_where_it_was_amplified(trained, capsys):
    options = (*TINY, "model=resnet20", "recipe.epochs=3", "paths.runs=runs")
    summaries = [train(*options, f"method={name}") for name in ("baseline", "amplification", "amplification_std")]
    figure = figures.draw("amplification", Path("runs"), "custom")
    panels = [axis for axis in figure.axes if axis.get_title()]
    assert len(panels) == 2  # the baseline has none
    for axis, summary in zip(panels, summaries[1:], strict=True):
        records = read_epochs(Path("runs/custom") / summary.run_id, 3)
        names = [label.get_text() for label in axis.get_yticklabels()]
        values = axis.images[0].get_array()
        assert values.shape == (19, 3)
        marks = {(round(x), names[int(y)]) for x, y in axis.collections[0].get_offsets()}
        assert marks == {
            (record["epoch"] + 1, name) for record in records for name in names if record[f"amplification/{name}"] == 2
        }
        assert {epoch for epoch, _ in marks} == {2, 3}
        assert values[names.index("blocks.3.conv1"), 1] == records[1]["fluctuation/blocks.3.conv1"]
    assert main(["figure", "amplification", "custom"]) == 0
    assert rgb("#D55E00") in drawn("amplification.png")
    with pytest.raises(InputError, match="has amplified: `pgt train"):
        figures.draw("amplification", trained, "custom")
    assert f"{len([m for m in marks if m[0] == 3])} of 19 layers" in log(summary)


def test_what_cannot_be_drawn_says_why(trained, capsys):
    for arguments, message in (
        (["figure", "3"], "there is no figure 3 here: choose one of 2, 4"),
        (["figure", "amplify"], ", amplification"),
        (["figure", "2", "demo/bn"], "figure 2 needs no runs"),
        (["figure", "10"], "pgt train experiment=grid/alpha_resnet18"),
        (["figure", "amplification"], "pgt train -m experiment=amplification/all"),
        (["figure", "7"], "record.norms_every=50"),
        (["figure", "4"], "pgt train -m experiment=table1/resnet18_cosine_baseline,"),
        (["figure", "2", "--output", "x.gif"], "end the name in one of"),
        (["report"], "no runs under runs"),
    ):
        assert main(arguments) == 2
        assert message in capsys.readouterr().err
    plant("demo/bn", "baseline", 0, 90.0, 89.0, curve=(50, 70))
    with pytest.raises(InputError, match="not two α of one setting"):
        figures.draw(8, Path("runs"), "demo/bn")
    with pytest.raises(InputError, match=r"record.norms_every=50 trainer.force=true` trains those that have ended"):
        figures.draw(5, Path("runs"), "demo/bn")  # without `force` the same command would return the same run
    assert list(Path().glob("*.*")) == []


@pytest.fixture(scope="module")
def page(trained):
    path = trained.parent / "report.html"
    assert main(["report", "--runs", str(trained), "--output", str(path)]) == 0
    return path


def test_the_report_stands_alone(page, trained):
    text = page.read_text()
    addresses = re.findall(r'(?:src|href)="([^"]*)"', text)
    assert len(addresses) > 8
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "<script" not in text
    assert text.count("<details id") == 2
    assert "2 runs, 2 of them finished; 0 of the paper's 32 rows" in text
    assert "custom, drawn as Figure 10" in text
    assert "<td>method.alpha</td><td>0.25</td><td>1.0</td>" in text
    assert text.count("77.952") == 2  # by the paper and its README
    assert "zeroed out" in text
    machine = json.loads(next(trained.rglob("environment.json")).read_text())["starts"][0]["machine"]
    assert len(machine) < 4 or machine not in text


def test_the_report_escapes_what_runs_say(trained):
    shutil.copytree(trained, "runs")
    path = next(Path("runs").rglob("summary.json"))
    values = json.loads(path.read_text()) | {"status": "diverged", "reason": "<script>alert(1)</script>"}
    path.write_text(json.dumps(values))
    assert "<script>" not in report.page(Path("runs"), drawn=False)


def test_a_damaged_run_does_not_spoil_the_report(trained):
    shutil.copytree(trained, "runs")
    path = next(Path("runs").rglob("metrics.jsonl"))
    path.write_text("")
    (path.parent / "environment.json").write_text("{")
    assert "lacks epochs that summary.json counts" in report.page(Path("runs"), drawn=False)


@pytest.mark.slow
def test_a_browser_shows_the_report_without_complaint(page, chromium):
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
               "--host-resolver-rules=MAP * ~NOTFOUND", "--window-size=1300,2000"]  # fmt: skip
    shot = subprocess.run(
        [*command, "--screenshot=page.png", page.as_uri()], capture_output=True, text=True, timeout=120
    )
    assert "CONSOLE" not in shot.stderr
    assert len(drawn("page.png")) > 50
    dom = subprocess.run([*command, "--dump-dom", page.as_uri()], capture_output=True, text=True, timeout=120).stdout
    assert dom.count("<details id") == 2


def test_tables_plan_and_report_of_many_runs_need_no_torch():
    template = plant("demo/bn", "baseline", 0, 90.0, 89.0, curve=range(1, 90))
    folder = Path("runs/demo/bn") / template.run_id
    steps = "".join(json.dumps({"step": s, "event": "step", "epoch": 0, "train_loss": 1.0}) + "\n" for s in range(2000))
    (folder / "metrics.jsonl").write_text(steps + (folder / "metrics.jsonl").read_text())
    values = json.loads((folder / "summary.json").read_text())
    for index in range(50):
        copy = shutil.copytree(folder, folder.parent / f"{index:012x}")
        other = values | {"run_id": f"{index:012x}", "seed": index}
        (copy / "summary.json").write_text(json.dumps(other))
    commands = "table all", "table demo", "report --no-figures", "plan experiment=demo/all", "status"
    code = (
        "import sys; from pgt.cli.main import main\n"
        "codes = [main(line.split()) for line in sys.argv[1:]]; sys.exit(any(codes) or 'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code, *commands], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert Path("report.html").read_text().count("<details id") == 51


def test_missing_norms_of_a_finished_run_are_an_error(trained):
    shutil.copytree(trained, "runs")
    folder = next(path.parent for path in sorted(Path("runs").rglob("norms.bin")))
    (folder / "norms.bin").write_bytes(b"cut")
    with pytest.raises(InputError, match="no record of a finished run"):
        figures.draw(14, Path("runs"), f"custom/{folder.parent.name}")


def test_norms_of_a_diverging_run_are_drawn():
    """The limits of the axes come from the finite norms only."""
    from pgt.reproduction.figures.style import pyplot

    _, axis = pyplot().subplots()
    values = np.array([[1.0, 2.0], [np.inf, 1.5], [np.nan, 1.0]])
    filters._lines(axis, np.array([0, 1, 2]), values)
    assert axis.get_ylim() == (0, pytest.approx(2.1))
    pyplot().close("all")


def test_runs_of_different_settings_are_separate_series():
    plant("demo/bn", "pgt", 0, 90.0, 80.0, overrides=["method.alpha=1"])
    plant("demo/bn", "pgt", 0, 90.0, 81.0, overrides=["method.alpha=0.5"])
    plant("demo/bn", "pgt", 0, 90.0, 50.0, overrides=["method.alpha=0.5", "recipe.epochs=3"])
    series = grid.read_series(Path("runs"), "demo/bn")
    assert {name: list(runs.alpha) for name, runs in series.items()} == {
        "epochs=3": [0.5],
        "epochs=15": [0.5, 1],
    }
