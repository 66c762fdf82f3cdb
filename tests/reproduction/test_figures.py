"""Every figure and the report, from runs that were trained and from planted ones."""

import itertools
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pgt.cli.main import main
from pgt.core.errors import InputError
from pgt.reproduction import figures, report
from pgt.reproduction.figures import curves, filters, grid, sweep
from pgt.reproduction.figures.style import COLOURS, MOST_LINES
from pgt.runs.folder import read_epochs
from tests.conftest import SECONDS, TINY, imports, train
from tests.reproduction.helpers import plant


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of two α with recorded norms: two epochs of two steps on synthetic images."""
    root = tmp_path_factory.mktemp("trained") / "runs"
    for alpha in (1, 0.25):
        train(*TINY, "model=resnet20", "recipe.epochs=2", "method=pgt", f"method.alpha={alpha}",
              "record.norms_every=1", f"paths.runs={root}")  # fmt: skip
    return root


@pytest.fixture(autouse=True)
def _closed_figures():
    yield
    figures.style.pyplot().close("all")


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
    if number == 4:
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


def test_a_line_is_fitted_through_logits_and_losses_of_three_alphas():
    for number, alpha in enumerate((1, 0.5, 0.25), start=1):
        for seed in (0, 1):
            plant("demo/bn", "pgt", seed, 90.0, 80.0, curve=(50, 60), overrides=[f"method.alpha={alpha}"])
        for path in Path("runs").rglob("summary.json"):
            values = json.loads(path.read_text())
            norm = 4 + 1 / values["identity"]["method"]["alpha"]
            path.write_text(json.dumps(values | {"test_logit_norm": norm, "test_loss": 2 * norm - 3}))
        if number > 1:
            labels = [line.get_label() for line in figures.draw(8, Path("runs"), "demo/bn").axes[2].lines]
            assert ("2.0000 x − 3.000 (R² = 1.00)" in labels) == (number == 3)


@pytest.mark.parametrize(("experiment", "lines"), [("grid/alpha_resnet50", 1), ("grid/alpha_resnet20_cifar10", 0)])
def test_the_papers_line_through_logits_is_drawn_over_runs_on_imagenet_only(monkeypatch, experiment, lines):
    for name in ("IMAGENET", "CIFAR"):
        monkeypatch.setenv(name, "nowhere")
    for alpha in (1, 0.5):
        plant(experiment, "pgt", 0, 90.0, 80.0, curve=(50, 60), overrides=[f"method.alpha={alpha}"])
    for path in Path("runs").rglob("summary.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"test_logit_norm": 5.0, "test_loss": 1.0}))
    figure = figures.draw(8, Path("runs"), experiment)
    assert sum("paper" in str(line.get_label()) for line in figure.axes[2].lines) == lines


def test_epochs_to_the_baselines_end():
    plant("demo/bn", "baseline", 0, 90.0, 89.0, curve=(50, 70, 80, 90))
    plant("demo/bn", "pgt", 0, 95.0, 94.0, curve=(60, 91, 93, 95))
    plant("demo/bn", "gc", 0, 70.0, 69.0, curve=(40, 50, 60, 70))
    figure = curves.accuracy_by_epoch(Path("runs"), "demo/bn")
    labels = [text.get_text() for text in figure.axes[2].get_legend().get_texts()]
    assert labels == ["baseline: in epoch 4", "gc: never", "pgt: in epoch 2"]


def legend(axis):
    return [text.get_text() for text in axis.get_legend().get_texts()]


def test_without_a_baseline_no_line_is_called_one():
    plant("demo/bn", "pgt", 0, 95.0, 94.0, curve=(60, 91, 93, 95))
    plant("demo/bn", "gc", 0, 70.0, 69.0, curve=(40, 50, 60, 70))
    figure = curves.accuracy_by_epoch(Path("runs"), "demo/bn")
    assert legend(figure.axes[2]) == ["gc", "pgt"]
    assert figure.axes[2].get_title() == "No baseline to reach"
    assert "baseline" not in figure._suptitle.get_text()


def test_a_method_with_label_smoothing_has_to_reach_label_smoothing_alone():
    for epsilon, base in ((0, 81), (0.1, 71)):
        for method, curve in (("baseline", (50, base)), ("pgt", (73, 74))):
            plant("demo/bn", method, 0, 90.0, 80.0, curve=curve, overrides=[f"method.label_smoothing={epsilon}"])
    [axis] = curves.accuracy_by_epoch(Path("runs"), "demo/bn").axes[2:]
    assert legend(axis) == [
        "baseline: in epoch 2",
        "baseline label_smoothing=0.1: never",
        "pgt: never",
        "pgt label_smoothing=0.1: in epoch 1",
    ]
    title = " ".join(axis.get_title().split())
    assert title == "Reaching 80.00 % (baseline), 70.00 % (baseline label_smoothing=0.1)"


def test_every_method_of_a_sweep_over_thresholds_is_shown():
    """The methods have different keys: a baseline's threshold is null."""
    plant("demo/nobn", "baseline", 0, 90.0, 80.0, curve=(50, 81))
    for norm, factor in ((1, 0.01), (2, 0.02)):
        plant("demo/nobn", "gc", 0, 90.0, 80.0, curve=(50, 81), overrides=[f"method.transforms.0.max_norm={norm}"])
        overrides = [f"method.transforms.0.clip_factor={factor}"]
        plant("demo/nobn", "agc", 0, 90.0, 80.0, curve=(50, 81), overrides=overrides)
    labels = ["baseline", "gc max_norm=1", "gc max_norm=2", "agc clip_factor=0.01", "agc clip_factor=0.02"]
    figure = figures.draw(4, Path("runs"), "demo/nobn")
    assert legend(figure.axes[2]) == [f"{label}: in epoch 2" for label in labels]
    [axis] = figures.draw("sweep", Path("runs"), "demo/nobn", sweep.Axes("method")).axes
    assert [text.get_text() for text in axis.get_xticklabels()] == ["baseline", "gc", "agc"]
    assert sorted(x for bars in axis.containers for x in bars.lines[0].get_xdata()) == [0, 1, 1, 2, 2]
    page = report.page(Path("runs"), "demo/nobn", drawn=False)
    assert all(f"{label} (n=1)" in page for label in labels)


@pytest.mark.parametrize("y", ["", "method"])
def test_null_is_a_place_of_an_axis(y):
    for method, batch in itertools.product(("baseline", "pgt"), ("null", 32)):
        plant("demo/nobn", method, 0, 90.0, 80.0, curve=(50,), overrides=[f"recipe.local_batch={batch}"])
    axis = figures.draw("sweep", Path("runs"), "demo/nobn", sweep.Axes("recipe.local_batch", y)).axes[0]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["null", "32"]
    if y:
        assert axis.images[0].get_array().filled(np.nan).tolist() == [[80, 80], [80, 80]]
    else:
        assert [list(bars.lines[0].get_xdata()) for bars in axis.containers] == [[0, 1], [0, 1]]


def test_copies_of_a_run_count_once_in_figures_and_the_report():
    for alpha, seed in itertools.product((1, 0.5), (0, 1)):
        plant("demo/bn", "pgt", seed, 90.0, 80.0 + seed, curve=(50, 60), overrides=[f"method.alpha={alpha}"])
    for path in [*Path("runs/demo/bn").iterdir()][:2]:
        shutil.copytree(path, Path("runs/copies") / path.name)
    shutil.copytree("runs/copies", "runs/demo/bn/copies")
    assert "n = 2." in figures.draw(10, Path("runs"), "demo/bn")._supxlabel.get_text()
    assert "n = 2." in figures.draw(4, Path("runs"), "demo/bn")._supxlabel.get_text()
    page = report.page(Path("runs"), None, drawn=False)
    assert page.count("(n=2)") == 2
    assert "4 runs, 4 of them finished" in page


def test_a_mean_that_is_not_known_is_not_drawn_as_0():
    _, axis = figures.style.pyplot().subplots()
    grid.errorbars(axis, pd.DataFrame({"alpha": [1.0, 0.5], "loss": [np.nan, 2.0]}), "alpha", "loss", "", 0)
    [bars] = axis.containers
    assert list(bars.lines[0].get_ydata()) == pytest.approx([2.0, np.nan], nan_ok=True)


def plant_sweep(rates=(0.1, 0.2), alphas=(1, 0.5), seeds=(0, 1), top1=lambda rate, alpha, seed: 80 + 10 * rate + seed):
    for rate, alpha, seed in itertools.product(rates, alphas, seeds):
        overrides = [f"method.alpha={alpha}", f"recipe.lr_peak={rate}"]
        value = top1(rate, alpha, seed)
        plant("demo/bn", "pgt", seed, 90.0, value, curve=(50, value), overrides=overrides)


def test_each_recipe_of_a_sweep_is_compared_with_its_own_baseline():
    plant_sweep(top1=lambda rate, alpha, seed: 60 + 100 * rate + alpha + seed)
    figure = curves.accuracy_by_epoch(Path("runs"), "demo/bn")
    axes = np.array(figure.axes).reshape(3, 2)
    assert [axis.get_title() for axis in axes[0]] == ["lr_peak=0.1", "lr_peak=0.2"]
    assert ["70.50 % (baseline)" in axes[2][0].get_title(), "80.50 % (baseline)" in axes[2][1].get_title()] == [
        True
    ] * 2
    for axis in axes[2]:
        labels = [text.get_text() for text in axis.get_legend().get_texts()]
        assert labels == ["baseline: in epoch 2", "pgt: never"]  # the only α needs no label
    assert {axis.get_ylim() for axis in axes[:2].flat} == {(0, 100)}
    assert {axis.get_yscale() for axis in axes.flat} == {"linear"}
    assert "n = 2. Seeds 0, 1." in figure._supxlabel.get_text()


@pytest.mark.slow
def test_a_recipe_without_a_method_among_the_foremost_has_no_panel():
    alphas = [1, *(round(0.05 * step, 2) for step in range(1, MOST_LINES))]
    plant_sweep(rates=(0.1,), alphas=alphas, seeds=(0,))
    plant_sweep(rates=(0.2,), alphas=(0.99,), seeds=(0,), top1=lambda rate, alpha, seed: 10)
    figure = curves.accuracy_by_epoch(Path("runs"), "demo/bn")
    assert [axis.get_title() for axis in np.array(figure.axes).reshape(3, 1)[0]] == ["lr_peak=0.1"]
    assert f"{MOST_LINES} of {MOST_LINES + 1} methods" in " ".join(figure._supxlabel.get_text().split())


@pytest.mark.slow
@pytest.mark.parametrize("number", [4, 8, 10])
def test_legends_and_titles_of_a_large_sweep_lie_beside_the_panels_and_within_the_picture(number):
    plant_sweep(rates=(0.1, 0.2, 0.3), alphas=(1, 0.5, 0.25, 0.1, 0.05, 0), seeds=(0,))
    for path in Path("runs").rglob("summary.json"):
        values = json.loads(path.read_text())
        measured = {"test_logit_norm": 9 / (0.1 + values["identity"]["method"]["alpha"]), "test_loss": 1.0}
        path.write_text(json.dumps(values | measured | {"test_loss_alpha": 1.0}))
    figure = figures.draw(number, Path("runs"), "demo/bn")
    figure.canvas.draw()
    inside = figure.bbox.padded(1)
    panels = [axis.get_window_extent() for axis in figure.axes]
    legends = [axis.get_legend().get_window_extent() for axis in figure.axes if axis.get_legend()]
    assert legends
    for legend in legends:
        assert not any(legend.overlaps(panel) for panel in panels)
    for box in (*legends, figure._suptitle.get_window_extent(), figure._supxlabel.get_window_extent()):
        assert inside.x0 <= box.x0 < box.x1 <= inside.x1
        assert inside.y0 <= box.y0 < box.y1 <= inside.y1


@pytest.mark.parametrize("curve", [(0.0, 0.0), (0.0,), (100.0, 100.0)])
@pytest.mark.parametrize("number", [4, 10])
def test_accuracies_of_nothing_and_of_everything_are_drawn_without_a_warning(curve, number):
    for alpha in (1, 0.5):
        plant("demo/bn", "pgt", 0, curve[0], curve[0], curve=curve, overrides=[f"method.alpha={alpha}"])
    figure = figures.draw(number, Path("runs"), "demo/bn")
    figure.canvas.draw()
    assert all(axis.get_ylim()[1] <= 100 for axis in figure.axes)


@pytest.mark.parametrize(("highest", "end"), [(50.5, 100), (50, 65), (24.7, 35), (0.5, 5)])
def test_low_accuracies_by_epoch_fill_their_panels_which_share_their_axis(highest, end):
    plant("demo/bn", "pgt", 0, 0.4, 0.2, curve=(0.1, 0.2), overrides=["recipe.lr_peak=0.2"])
    plant("demo/bn", "pgt", 0, highest, 0.2, curve=(0.1, highest), overrides=["recipe.lr_peak=0.1"])
    figure = curves.accuracy_by_epoch(Path("runs"), "demo/bn")
    assert {axis.get_ylim() for axis in np.array(figure.axes).reshape(3, 2)[:2].flat} == {(0, end)}


def test_accuracy_over_alpha_ends_at_100_if_that_leaves_room():
    plant_sweep(rates=(0.1,), seeds=(0,), top1=lambda rate, alpha, seed: 80 + 18 * alpha)
    _, high = figures.draw(10, Path("runs"), "demo/bn").axes[1].get_ylim()
    assert high == 100
    shutil.rmtree("runs")
    plant_sweep(rates=(0.1,), seeds=(0,), top1=lambda rate, alpha, seed: 70 + alpha)
    assert figures.draw(10, Path("runs"), "demo/bn").axes[1].get_ylim()[1] < 72


def test_a_line_over_any_swept_key():
    plant_sweep(rates=(0.01, 0.1, 1.0))
    figure = figures.draw("sweep", Path("runs"), "demo/bn", sweep.Axes("recipe.lr_peak"))
    [axis] = figure.axes
    assert axis.get_xscale() == "log"
    assert [text.get_text() for text in axis.get_legend().get_texts()] == ["baseline", "pgt"]
    line = axis.containers[0].lines[0]
    assert list(line.get_xdata()) == [0.01, 0.1, 1.0]
    assert list(line.get_ydata()) == pytest.approx([80.6, 81.5, 90.5])
    assert "n = 2. Seeds 0, 1." in figure._supxlabel.get_text()


def test_a_heat_map_over_two_swept_keys():
    plant_sweep()
    plant("demo/bn", "pgt", 5, 90.0, 70.0, curve=(50,), overrides=["method.alpha=0.25", "recipe.lr_peak=0.1"])
    figure = figures.draw("sweep", Path("runs"), "demo/bn", sweep.Axes("recipe.lr_peak", "method.alpha"))
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["0.25", "0.5", "1"]
    cells = axis.images[0].get_array().filled(np.nan)
    assert cells[:, 0].tolist() == [70.0, 81.5, 81.5]
    assert np.isnan(cells[0, 1])  # that combination was not run
    assert {text.get_text() for text in axis.texts} == {"70", "81.5\n±0.71", "82.5\n±0.71"}
    assert "n = 1 to 2" in figure._supxlabel.get_text()


def test_methods_are_a_key_of_a_sweep_in_the_papers_order():
    for method in ("gc", "pgt", "baseline"):
        plant("demo/nobn", method, 0, 90.0, 80.0, curve=(50,))
    [axis] = figures.draw("sweep", Path("runs"), "demo/nobn", sweep.Axes("method")).axes
    assert [text.get_text() for text in axis.get_xticklabels()] == ["baseline", "gc", "pgt"]


def test_a_sweep_is_drawn_by_the_command_and_wrong_keys_get_one_line(capsys):
    plant_sweep(seeds=(0,))
    assert main(["figure", "sweep", "demo/bn", "--x", "recipe.lr_peak", "--output", "sweep.png"]) == 0
    assert rgb(COLOURS[1]) in drawn("sweep.png")
    capsys.readouterr()
    for arguments, *facts in (
        (["sweep", "demo/bn", "--x", "recipe.lr"], "recipe.lr was not swept", "recipe.lr_peak, method.alpha"),
        (["sweep", "demo/bn", "--x", "recipe.epochs"], "recipe.epochs was not swept", "recipe.lr_peak, method.alpha"),
        (["sweep", "demo/bn"], "--x is missing", "recipe.lr_peak, method.alpha"),
        (["sweep", "demo/bn", "--x", "recipe.lr_peak", "--y", "seed"], "seed was not swept", "--y takes one of"),
        (["sweep", "demo/bn", "--x", "method.alpha", "--y", "method.alpha"], "are both method.alpha"),
        (["sweep", "demo/bn", "--x", "method.alpha", "--value", "loss"], "loss cannot be shown", "test_loss_alpha"),
        (["sweep", "demo/bn", "--x", "method.alpha", "--value", "test_loss"], "has test_loss"),
        (["sweep", "--x", "method.alpha"], "name an experiment"),
        (["sweep", "demo/bm", "--x", "method.alpha"], "did you mean demo/bn?"),
        (["4", "demo/bn", "--x", "method.alpha"], "--x is for `pgt figure sweep EXPERIMENT`"),
    ):
        assert main(["figure", *arguments]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert all(fact in said for fact in facts)
    assert [str(path) for path in Path().glob("*.*")] == ["sweep.png"]


def test_the_papers_own_panels_take_their_runs(monkeypatch):
    monkeypatch.setenv("IMAGENET", ".")
    plant("table1/resnet50_cosine_baseline", "baseline", 0, 79.0, 76.5, curve=(30, 50, 76.5))
    plant("fig4/resnet50_pgt_60", "pgt", 0, 79.0, 76.5, curve=(40, 77.6))
    figure = figures.draw(4, Path("runs"), None)
    titles = [" ".join(axis.get_title().split()) for axis in figure.axes]
    assert titles[:2] == ["ResNet-50", "ResNet-50, 60 epochs against 100"]


SHORT = "trainer.precision=bf16", "recipe.epochs=10"


def test_a_panel_of_the_paper_is_split_by_what_else_differs(monkeypatch):
    monkeypatch.setenv("IMAGENET", ".")
    for overrides, last in (((), 81), (("recipe=authors",), 71), (SHORT, 31)):
        plant("table1/resnet18_cosine_baseline", "baseline", 0, 70.0, 70.0, curve=(20, last), overrides=overrides)
        plant("table1/resnet18_cosine_pgt", "pgt", 0, 70.0, 70.0, curve=(20, last), overrides=overrides)
    figure = figures.draw(4, Path("runs"), None)
    axes = np.array(figure.axes).reshape(3, 3)
    titles = [" ".join(axis.get_title().split()) for axis in axes[0]]
    assert titles == [
        "ResNet-18, epochs=10 lr_peak=0.4",
        "ResNet-18, epochs=100 lr_peak=0.1",
        "ResNet-18, epochs=100 lr_peak=0.4",
    ]
    reached = [axis.get_title() for axis in axes[2]]
    assert reached == [f"Reaching {goal:.2f} % (baseline)" for goal in (30, 70, 80)]
    assert "n = 1." in figure._supxlabel.get_text()


def test_the_panel_of_60_epochs_against_100_has_no_others(monkeypatch):
    monkeypatch.setenv("IMAGENET", ".")
    for recipe, epochs in itertools.product(("paper", "authors"), (100, 20)):
        overrides = f"recipe={recipe}", f"recipe.epochs={epochs}"
        plant("table1/resnet50_cosine_baseline", "baseline", 0, 79.0, 76.5, curve=(30, epochs), overrides=overrides)
    plant("fig4/resnet50_pgt_60", "pgt", 0, 79.0, 76.5, curve=(40, 77.6), overrides=["recipe=authors"])
    axes = np.array(figures.draw(4, Path("runs"), None).axes).reshape(3, -1)
    titles = [" ".join(axis.get_title().split()) for axis in axes[0]]
    assert titles[-2:] == [f"ResNet-50, 60 epochs against 100, lr_peak={rate}" for rate in (0.1, 0.4)]
    assert legend(axes[2][-2]) == ["baseline: in epoch 2", "pgt: never"]
    assert axes[2][-2].get_title() == "Reaching 99.00 % (baseline)"


def restate(root, alpha, status):
    """Give the run of this α another status."""
    for path in Path(root).rglob("summary.json"):
        values = json.loads(path.read_text())
        if values["identity"]["method"]["alpha"] == alpha:
            path.write_text(json.dumps(values | {"status": status}))


def test_a_run_of_which_norms_are_shown_says_that_it_is_not_finished(trained):
    shutil.copytree(trained, "runs")
    restate("runs", 0.25, "diverged")
    titles = [axis.get_title() for axis in figures.draw(5, Path("runs"), "custom").axes]
    assert [" ".join(title.split()[:3]) for title in titles[:2]] == ["custom baseline seed", "custom pgt α=0.25"]
    assert ["(diverged), on" in " ".join(title.split()) for title in titles[:2]] == [False, True]


def test_the_commands_of_messages_name_experiments_that_can_be_trained():
    for experiment in ("demo/bn", "demo/nobn"):
        plant(experiment, "baseline", 0, 90.0, 89.0, curve=(50, 70))
    for number in (5, 8):
        with pytest.raises(InputError, match="pgt train -m experiment=demo/bn,demo/nobn "):
            figures.draw(number, Path("runs"), "demo")
    [run] = Path("runs/demo/bn").iterdir()
    with pytest.raises(InputError, match=r"pgt train -m experiment=demo/bn record\.norms_every"):
        figures.draw(5, Path("runs"), f"demo/bn/{run.name}")
    with pytest.raises(InputError, match="did you mean demo/bn"):
        figures.draw(5, Path("runs"), "demo/bm")
    path = run / "summary.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"experiment": None}))
    with pytest.raises(InputError, match=r"pgt train -m \.\.\. record\.norms_every"):
        figures.draw(5, Path("runs"), f"demo/bn/{run.name}")


def test_zeroed_out_filters_are_named_in_the_figure(trained):
    figure = filters.filter_norms(trained, 5, "custom")
    titles = [axis.get_title() for axis in figure.axes]
    assert "layer 11: 0 of 32 filters zeroed out" in titles[0]
    assert "layer 19: 0 of 64 filters zeroed out" in titles[2]
    assert "features" in titles[4]


@pytest.mark.slow
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
        (["figure", "10"], "pgt train -m experiment=grid/alpha_resnet18"),
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
    assert sum(address.startswith("data:image/svg") for address in addresses) == 4
    assert all(address.startswith(("data:", "#")) for address in addresses)
    assert "default-src 'none'" in text  # and the browser is told so
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
    text = report.page(Path("runs"), None, drawn=False)
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_a_damaged_run_does_not_spoil_the_report(trained):
    shutil.copytree(trained, "runs")
    path = next(Path("runs").rglob("metrics.jsonl"))
    path.write_text("")
    (path.parent / "environment.json").write_text("{")
    assert "lacks epochs that summary.json counts" in report.page(Path("runs"), None, drawn=False)
    path.unlink()
    shutil.copy(next(trained.rglob("metrics.jsonl")), path)
    assert "environment.json (JSONDecodeError)" in report.page(Path("runs"), None, drawn=False)


def test_a_run_that_has_just_begun_and_has_no_records_yet_spoils_nothing():
    plant("demo/bn", "pgt", 0, 90.0, 80.0, curve=(50, 60))
    begins = plant("demo/bn", "pgt", 1, None, None, status="unfinished")
    Path("runs/demo/bn", begins.run_id, "metrics.jsonl").unlink()
    assert "there is no" not in report.page(Path("runs"), None, drawn=True)
    with pytest.raises(InputError, match="has amplified"):
        figures.draw("amplification", Path("runs"), "demo/bn")


def test_the_report_opens_with_ones_own_results_and_folds_the_papers_empty_tables(page):
    text = page.read_text()
    places = [text.index(f'id="{part}"') for part in ("results", "paper", "figures", "runs")]
    assert places == sorted(places)
    assert re.search(r"custom</a></td><td>2 finished</td>", text)  # the summary names the experiment and its runs
    assert text.count("none of ") == 3
    assert "<details open" not in text
    values = [json.loads(unescape(found)) for found in re.findall(r'data-values="([^"]*)"', text)]
    assert [len(line) for line in values] == [2] * 6  # test top-1 of two settings, two curves for each run
    assert {deviation for line in values for *_, deviation in line} == {None}


def test_a_chart_has_the_means_over_seeds_and_the_summary_the_best_setting():
    for seed, (base, own) in enumerate(((60.0, 70.0), (62.0, 76.0))):
        plant("demo/bn", "baseline", seed, 90.0, base, curve=(50, base + 1))
        plant("demo/bn", "pgt", seed, 90.0, own, curve=(40, own + 1))
    text = report.page(Path("runs"), None, drawn=False)
    assert "<td>pgt α=0.25 <span" in text
    assert "<td>73.00 ± 4.24</td><td>61.00 ± 1.41</td><td>+12.00 ± 2.83</td>" in text
    label, line = "pgt (n=2)", json.loads(unescape(re.findall(r'data-values="([^"]*)"', text)[1]))
    assert label in text
    assert [value[1:] for value in line] == [[1, 39.0, 0.0], [2, 73.0, 4.24]]


def test_a_report_of_one_experiment_and_of_many_runs(monkeypatch, capsys):
    for seed in range(4):
        plant("demo/bn", "pgt", seed, 90.0, 80.0, curve=(50,))
    plant("demo/nobn", "pgt", 0, 90.0, 80.0, curve=(50,))
    assert main(["report", "demo/bn", "--no-figures"]) == 0
    text = Path("report.html").read_text()
    assert "demo/nobn" not in text
    assert text.count("<details id") == 4
    monkeypatch.setattr(report, "MOST_RUNS", 3)
    monkeypatch.setattr(report, "MOST_DRAWN", 3)
    text = report.page(Path("runs"), "demo/bn", drawn=True)
    assert text.count("<details id") == 3
    assert "The 3 of 4 runs that began last" in text
    assert "pgt figure 10 demo/bn" in text
    assert main(["report", "demo/bm"]) == 2
    assert "no runs under runs/demo/bm" in capsys.readouterr().err


def test_a_report_of_one_experiment_has_no_figures_of_others(monkeypatch):
    monkeypatch.setenv("IMAGENET", ".")
    plant("table1/resnet18_cosine_baseline", "baseline", 0, 70.0, 70.0, curve=(20, 70))
    plant("demo/bn", "baseline", 0, 90.0, 80.0, curve=(50,))
    assert "<figcaption>Figure 4</figcaption>" in report.page(Path("runs"), None, drawn=True)
    text = report.page(Path("runs"), "demo", drawn=True)
    assert re.findall("<figcaption>(.*?)</figcaption>", text) == ["demo/bn, drawn as Figure 4"]


def test_a_run_of_the_report_differs_from_its_own_baseline():
    for epsilon, method in itertools.product((0, 0.1), ("baseline", "pgt")):
        overrides = [f"method.label_smoothing={epsilon}"]
        plant("demo/bn", method, 0, 90.0, 80.0, curve=(50,), overrides=overrides)
    text = report.page(Path("runs"), None, drawn=False)
    assert text.count("No run of a baseline") == 1  # the plain baseline's
    assert text.count("<td>method.label_smoothing</td><td>0.1</td><td>0.0</td>") == 1  # label smoothing alone
    assert text.count("<td>method.alpha</td><td>0.25</td><td>1.0</td>") == 2


POKE = """<script>
const chart = document.querySelector(".chart svg");
for (let i = 0; i < 2; i++) chart.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowLeft" }));
document.title = `beyond the window: ${document.documentElement.scrollWidth - innerWidth}`;
document.querySelectorAll("details").forEach(one => one.open = true);
</script></body>"""
"""Points at the first epoch of the first chart."""


@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_browser_shows_the_report_without_complaint(page, chromium, width, dark):
    path = Path("page.html")
    path.write_text(page.read_text().replace("</body>", POKE))
    command = [chromium, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr", "--v=0",
               "--host-resolver-rules=MAP * ~NOTFOUND", f"--window-size={width},2000", "--hide-scrollbars",
               f"--blink-settings=preferredColorScheme={0 if dark else 1}"]  # fmt: skip
    address = path.resolve().as_uri()
    shot = subprocess.run([*command, "--screenshot=page.png", address], capture_output=True, text=True, timeout=SECONDS)
    assert "CONSOLE" not in shot.stderr
    with Image.open("page.png") as picture:
        assert (max(picture.convert("RGB").getpixel((2, 2))) < 64) == dark
    dom = subprocess.run([*command, "--dump-dom", address], capture_output=True, text=True, timeout=SECONDS).stdout
    assert dom.count("<details id") == 2
    assert "<title>beyond the window: 0</title>" in dom  # nothing but tables and pictures reaches beyond the window
    values = json.loads(unescape(re.search(r'data-values="([^"]*)"', dom)[1]))
    outputs = re.findall(r"<output>([^<]*)</output>", dom)
    assert outputs[:2] == ["1", f"{values[0][2]:.2f} %"]


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
    codes, found, _ = imports(["torch"], *map(str.split, commands))
    assert (codes, found) == ([0] * 5, [])
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

    _, (axis, beside) = pyplot().subplots(1, 2, sharey=True)
    values = np.array([[1.0, 2.0], [np.inf, 1.5], [np.nan, 1.0]])
    filters._lines(axis, np.array([0, 1, 2]), values)
    filters._lines(beside, np.array([0, 1, 2]), values / 10)
    assert axis.get_ylim() == beside.get_ylim() == (0, pytest.approx(2.1))
    assert axis.get_xlim() == (0, 2)
    for steps, values, limits in (
        ([0, 5], [[0.0], [0.0]], (0, 5, 0, 1.05)),  # every filter is zeroed out
        ([0, 5], [[np.nan], [np.nan]], (0, 5, 0, 1.05)),
        ([3], [[2.0]], (3, 4, 0, 2.1)),
    ):
        _, alone = pyplot().subplots()
        filters._lines(alone, np.array(steps), np.array(values))
        assert (*alone.get_xlim(), *alone.get_ylim()) == pytest.approx(limits)
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
