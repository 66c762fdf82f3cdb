import csv
import io
import json
import math
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

from pgt.cli.main import main
from pgt.core.errors import InputError
from pgt.reproduction import figures, formats, tables
from pgt.reproduction.groups import LAST, read_groups
from pgt.reproduction.statistics import Sample, paired_difference, sample
from pgt.runs.folder import find
from tests.reproduction.helpers import plant


def plant_table():
    for seed, (base, pgt) in enumerate([(90.0, 91.0), (92.0, 93.5), (94.0, 94.5)]):
        plant("demo/nobn", "baseline", seed, base + 5, base, curve=(50, 80, base + 5))
        plant("demo/nobn", "pgt", seed, pgt + 5, pgt, curve=(40, 85, 100))
    plant("demo/nobn", "gc", 0, 70.0, 60.0, curve=(10, 20, 70))
    plant("demo/nobn", "agc", 0, None, None, status="diverged")


def test_mean_and_deviation_worked_by_hand():
    assert sample([90.0, 92.0, 94.0]) == Sample(92.0, 2.0, 3)
    assert str(sample([90.0, 92.0, 94.0])) == "92.00 ± 2.00"
    assert math.isnan(sample([5.0]).deviation)
    assert str(sample([5.0])) == "5.00 (n=1)"
    assert sample([-1.0, -2.0]).signed() == "−1.50 ± 0.71"
    assert sample([1.0, 2.0]).signed() == "+1.50 ± 0.71"


def test_differences_pair_by_seed():
    assert paired_difference({0: 91.0, 1: 93.5, 7: 1.0}, {0: 90.0, 1: 92.0, 2: 5.0}) == sample([1.0, 1.5])
    assert paired_difference({0: 1.0}, {1: 2.0}) is None


def test_table_from_planted_runs():
    plant_table()
    rows = read_groups(Path("runs"), "demo")
    assert [row.method for row in rows] == ["baseline", "gc", "agc", "pgt"]
    baseline, gc, agc, pgt = rows
    assert baseline.measured(LAST) == sample([90.0, 92.0, 94.0])
    assert baseline.paired(LAST) is None
    assert pgt.alpha == 0.25
    assert pgt.paired(LAST) == sample([1.0, 1.5, 0.5])
    assert gc.paired(LAST) == sample([-30.0])
    assert (agc.measured(LAST), list(agc.runs.status)) == (None, ["diverged"])
    text = formats.render([tables.experiment_table(read_groups(Path("runs"), "demo"))], "markdown")
    assert "92.00 ± 2.00" in text
    assert "+1.00 ± 0.50" in text
    assert "0, 1 diverged" in text
    assert "does not show that PGT helps or hurts" in text


def test_settings_that_differ_get_rows_and_lines_of_their_own():
    """In a sweep over α and epochs, each mean is over the seeds of one setting."""
    for seed in (0, 1):
        plant("demo/bn", "pgt", seed, 1.0, 80.0, curve=(50, 80))
        plant("demo/bn", "pgt", seed, 1.0, 85.0, curve=(50, 85), overrides=["method.alpha=0.5"])
        plant("demo/bn", "pgt", seed, 1.0, 90.0, curve=(50, 60, 90), overrides=["recipe.epochs=7"])
        plant("demo/bn", "gcgd", seed, 1.0, 70.0, curve=(50, 70))
    groups = read_groups(Path("runs"), "demo/bn")
    assert [group.label for group in groups] == [  # by the numbers, and methods that the paper lacks after its own
        "pgt α=0.5 recipe.epochs=15",
        "pgt α=0.25 recipe.epochs=7",
        "pgt α=0.25 recipe.epochs=15",
        "gcode+gcw recipe.epochs=15",
    ]
    assert [len(group.runs) for group in groups] == [2, 2, 2, 2]
    assert [row.measured(LAST).mean for row in groups] == [85.0, 90.0, 80.0, 70.0]
    printed = tables.experiment_table(read_groups(Path("runs"), "demo/bn"))
    assert "pgt recipe.epochs=7" in formats.render([printed], "markdown")
    figures.save(4, Path("runs"), "demo/bn", Path("curves.svg"))
    assert Path("curves.svg").stat().st_size > 1000


def test_damaged_metrics_are_not_drawn():
    plant("demo/bn", "pgt", 0, 1.0, 2.0, curve=(50, 80, 90))
    path = next(Path("runs").rglob("metrics.jsonl"))
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:1] + lines[2:]))
    with pytest.raises(InputError, match="lacks epochs that summary"):
        figures.draw(4, Path("runs"), "demo/bn")
    path.write_text(lines[0] + lines[1][:-9] + "\n" + lines[2])
    with pytest.raises(InputError, match="line 2: no record"):
        figures.draw(4, Path("runs"), "demo/bn")


def test_table_command_writes_markdown(capsys):
    plant_table()
    assert main(["table", "demo/nobn", "--output", "out/table.md"]) == 0
    printed = capsys.readouterr().out
    assert Path("out/table.md").read_text().strip() in printed


def test_curves_command_draws_a_picture():
    plant_table()
    for name in ("curves.png", "curves.svg"):
        assert main(["figure", "4", "demo", "--output", f"out/{name}"]) == 0
    with Image.open("out/curves.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(maxcolors=1 << 24)}
        assert picture.width > 500
    for index in range(3):  # baseline, gc and pgt; agc has no finished run
        assert tuple(bytes.fromhex(figures.style.COLOURS[index][1:])) in colours
    assert "<svg" in Path("out/curves.svg").read_text()


def test_nothing_to_show_exits_2(capsys):
    assert main(["table", "demo"]) == 2
    assert "run `pgt train -m experiment=demo/all` first" in capsys.readouterr().err
    plant("demo/nobn", "agc", 0, None, None, status="diverged")
    assert main(["figure", "4", "demo", "--output", "x.png"]) == 2
    assert main(["figure", "4", "demo", "--output", "x.gif"]) == 2
    assert not Path("x.png").exists()


def test_a_summary_survives_the_round_trip():
    summary = plant("demo/bn", "pgt", 3, 1.0, 2.0)
    path = next(Path("runs").rglob("summary.json"))
    assert json.loads(path.read_text()) == asdict(summary)


def test_unknown_runs_folder_is_refused():
    with pytest.raises(InputError, match="no runs under elsewhere/demo"):
        read_groups(Path("elsewhere"), "demo")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table", "4"], "there is no experiment of this name; name one out of amplification, correction, demo, fig4"),
        (["table", "demo/bm"], "did you mean demo/bn?"),
        (["table", "demo/bn"], "run `pgt train experiment=demo/bn` first"),
        (["table", "demo/"], "run `pgt train -m experiment=demo/all` first"),
        (["table", "1", "--runs", "nowhere"], "there is no folder nowhere"),
        (["table", "1", "--format", "csv", "--output", "t.md"], "--format csv and --output t.md do not go together"),
        (["report", "--output", "t.txt"], "end the name in .html"),
    ],
)
def test_a_wrong_name_gets_a_way_out_that_works(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [["table", "demo"], ["table", "1"], ["report", "--no-figures"], ["plan", "experiment=demo/bn"]],
)
def test_a_damaged_summary_leaves_out_its_run_alone(arguments, capsys):
    for seed in range(3):
        plant("demo/bn", "pgt", seed, 90.0, 90.0 + seed, curve=(50,))
    root = Path("runs").resolve()
    [path] = (folder / "summary.json" for folder, summary in find(root) if summary.seed == 1)
    path.write_text(path.read_text()[:99])
    assert main([*arguments, "--runs", str(root)]) == 0
    said = capsys.readouterr()
    assert said.err.count("\n") == 1  # the summary is read more than once, and warned about once
    for fact in ("a run is left out", f"cannot read {path}", "delete this file, and its run goes on"):
        assert fact in said.err
    if arguments == ["table", "demo"]:
        assert "91.00 ± 1.41" in said.out
    assert sorted(summary.seed for _, summary in find(Path("runs"))) == [0, 2]


def test_a_difference_is_between_runs_that_differ_in_the_method_alone():
    plant("demo/bn", "baseline", 0, 90.0, 96.0, overrides=["recipe.epochs=6"])
    plant("demo/bn", "pgt", 0, 60.0, 58.0, overrides=["recipe.epochs=3"])
    baseline, pgt = read_groups(Path("runs"), "demo/bn")
    assert pgt.paired(LAST) is None
    assert (baseline.setting, pgt.setting) == ("recipe.epochs=6", "recipe.epochs=3")


def test_label_smoothing_is_compared_with_the_plain_baseline_and_a_method_with_its_own():
    for epsilon, base, own in ((0.1, 70.0, 75.0), (0, 80.0, 81.0)):
        plant("demo/bn", "baseline", 0, 90.0, base, overrides=[f"method.label_smoothing={epsilon}"])
        plant("demo/bn", "pgt", 0, 90.0, own, overrides=[f"method.label_smoothing={epsilon}"])
    found = {group.label: group.paired(LAST) for group in read_groups(Path("runs"), "demo/bn")}
    assert found == {
        "baseline method.label_smoothing=0.0": None,
        "baseline method.label_smoothing=0.1": sample([-10.0]),
        "pgt α=0.25 method.label_smoothing=0.0": sample([1.0]),
        "pgt α=0.25 method.label_smoothing=0.1": sample([5.0]),
    }


def test_a_method_with_label_smoothing_is_not_compared_with_a_baseline_without_it_or_with_other_targets():
    plant("demo/bn", "baseline", 0, 90.0, 80.0)
    smoothed = "method.label_smoothing=0.1"
    plant("demo/bn", "pgt", 0, 90.0, 81.0, overrides=[smoothed])
    plant("demo/bn", "baseline", 0, 90.0, 80.0, overrides=[smoothed, "method.smoothing=uniform"])
    assert [group.paired(LAST) for group in read_groups(Path("runs"), "demo/bn") if group.method == "pgt"] == [None]


def test_the_runs_of_a_group_begin_with_the_finished_ones_and_others_say_their_status():
    for seed, status in enumerate(("diverged", "finished", "unfinished", "finished")):
        plant("demo/bn", "pgt", seed, 90.0, 80.0, status=status)
    [group] = read_groups(Path("runs"), "demo/bn")
    assert [title for title, _ in group.titled] == [
        "demo/bn pgt α=0.25 seed 1",
        "demo/bn pgt α=0.25 seed 3",
        "demo/bn pgt α=0.25 seed 0 (diverged)",
        "demo/bn pgt α=0.25 seed 2 (unfinished)",
    ]
    assert [run["seed"] for _, run in group.titled] == [1, 3, 0, 2]


def test_copies_of_a_diverged_run_count_once():
    plant("demo/bn", "pgt", 0, 90.0, 80.0, status="diverged")
    shutil.copytree("runs/demo/bn", "runs/demo/bn/copies")
    [group] = read_groups(Path("runs"), "demo/bn")
    assert group.count == "0, 1 diverged"


def test_a_markdown_cell_may_have_a_bar():
    table = formats.Table("", ["what"], [["a|b"]])
    assert r"| a\|b" in formats.render([table], "markdown")
    assert "a|b" in formats.render([table], "terminal")


def test_csv_is_data(capsys):
    plant_table()
    assert main(["table", "demo", "--format", "csv"]) == 0
    lines = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert [line["method"] for line in lines] == ["baseline", "gc", "agc", "pgt"]
    assert (lines[3]["test_diff"], lines[3]["seeds"], lines[3]["alpha"]) == ("1.0", "0 1 2", "0.25")
    assert (lines[2]["test_top1_final"], lines[2]["n"]) == ("", "0")
    assert [line["diverged"] for line in lines] == ["0", "0", "1", "0"]
    assert {line["unfinished"] for line in lines} == {"0"}


def test_the_table_of_amplification_has_the_published_gains(monkeypatch, capsys):
    monkeypatch.setenv("CIFAR", ".")
    for data, rate in (("cifar10", 0.1), ("cifar10", 0.4), ("cifar100", 0.1)):
        for method, top1 in (("baseline", 60.0), ("amplification_std", 61.0)):
            plant(f"amplification/resnet18_{data}", method, 0, 90.0, top1, overrides=[f"recipe.lr_peak={rate}"])
    assert main(["table", "amplification"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("Diff: published")
    rows = [line.split() for line in lines if line.startswith("amplification/")]
    assert [row[-1] for row in rows if row[1].startswith("amplification")] == ["+2.5", "+2.5", "+4.5"]
    assert [row[-1] for row in rows if row[1].startswith("baseline")] == ["(n=1)"] * 3
    assert sum("+1.00 (n=1)" in line for line in lines) == 3
    plant("demo/bn", "baseline", 0, 90.0, 60.0)
    assert main(["table", "demo"]) == 0
    assert "published" not in capsys.readouterr().out
