"""The paper's tables: rows, experiments, and verdicts from planted runs."""

import csv
import io
import re
import shutil
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from pgt.cli.main import main
from pgt.config.choices import experiments
from pgt.config.compose import compose_all
from pgt.config.identity import identity
from pgt.core.errors import InputError
from pgt.reproduction import formats, paper, paper_tables, published
from pgt.reproduction.groups import BEST, LAST
from pgt.reproduction.statistics import (
    Difference,
    Sample,
    difference,
    interval,
    judge_accuracy,
    judge_difference,
    sample,
    seeds_needed,
)
from pgt.runs import frame
from pgt.runs.frame import dotted
from tests.conftest import ROOT, compose
from tests.reproduction.helpers import plant_summary


@pytest.fixture(autouse=True)
def _imagenet(monkeypatch):
    monkeypatch.setenv("IMAGENET", "nowhere")


def plant(experiment, best, *overrides, train=70.0, status="finished", seeds=range(100)):
    """Runs of these seeds with these best test accuracies. The last epoch's are lower by 0.5 and 0.1 a seed, and with
    PGT by 1 − α more, so that it is worse in the last epoch where it is a little better in the best."""
    [config] = compose_all([f"experiment={experiment}", *overrides])
    for seed, top1 in zip(seeds, best, strict=False):
        config.seed = seed
        last = top1 - 0.5 - 0.1 * seed - (1 - config.method.alpha)
        plant_summary(config, status=status, train_top1=train, test_top1_best=top1, test_top1_final=last)


def lines_of(table, number):
    return [line for line in paper.measure(frame("runs"), table)[0] if line.row.number == number]


def test_every_row_has_one_experiment_and_every_number_is_the_papers():
    rows = published.all_rows()
    assert (len(rows), len({row.experiment for row in rows})) == (32, 29)
    for table in (1, 2, 3):
        with (ROOT / f"results/published/table{table}.csv").open() as file:
            lines = list(csv.DictReader(file))
        for row, line in zip(published.rows(table), lines, strict=True):
            assert (row.train_top1, row.test_top1) == (float(line["train_top1"]), float(line["test_top1"]))
            if line.get("test_diff"):
                assert published.difference(row) == pytest.approx(float(line["test_diff"]), abs=1e-9)
                assert published.difference(row, "train_top1") == pytest.approx(float(line["train_diff"]), abs=1e-9)
            if line.get("gap"):
                assert published.gap(row) == pytest.approx(float(line["gap"]), abs=1e-9)
    with (ROOT / "results/published/authors_readme.csv").open() as file:
        readme = [float(line["test_top1"]) for line in csv.DictReader(file)]
    assert set(readme) == {row.readme_top1 for row in rows} - {None}


def test_every_experiment_is_some_rows_or_derives_from_one():
    folder = ROOT / "conf" / "experiment"
    files = {f"{path.parent.name}/{path.stem}" for path in folder.glob("table?/*.yaml") if path.stem != "all"}
    assert files == {row.experiment for row in published.all_rows()}
    hook = {path.stem for path in folder.glob("truncation/*.yaml")}
    small = {row.experiment for row in published.all_rows() if row.alpha <= published.TRUNCATED}
    assert hook == {name.replace("/", "_") for name in small}


def test_headers_name_every_cell_with_its_value():
    for row in published.all_rows():
        lines = (ROOT / "conf/experiment" / f"{row.experiment}.yaml").read_text().splitlines()
        assert f"Table {row.table}, row {row.number}" in lines[1]
        assert f"train {row.train_top1:g}, test {row.test_top1:g}" in lines[1]


@pytest.mark.parametrize("recipe", ["paper", pytest.param("authors", marks=pytest.mark.slow)])
def test_every_row_is_what_its_experiment_trains(recipe):
    """The comparison covers every value of a run's identity except the decoder."""
    names = ",".join(dict.fromkeys(row.experiment for row in published.all_rows()))
    found = {c.experiment: c for c in compose_all([f"experiment={names}", f"recipe={recipe}"], multirun=True)}
    for row in published.all_rows():
        values = dotted(identity(found[row.experiment]))
        del values[paper.DECODER]
        assert values == paper.expected(row, paper.Arm(recipe, "exact")), row.experiment


def test_the_truncation_arm_fills_the_same_rows_by_the_hook():
    for row in published.all_rows():
        if row.alpha > published.TRUNCATED:
            continue
        values = dotted(identity(compose(f"experiment={paper.truncation(row.experiment)}", "recipe=authors")))
        del values[paper.DECODER]
        assert values == paper.expected(row, paper.Arm("authors", "authors_hook"))


def test_all_expands_to_the_rows_of_a_table():
    for table, rows in ((1, 14), (2, 10), (3, 8)):
        assert len(experiments(f"table{table}/all")) == rows
    everything = compose_all(["experiment=table1/all,table2/all,table3/all"], multirun=True)
    assert [config.experiment for config in everything] == [
        row.experiment for i, row in enumerate(published.all_rows()) if row.experiment not in
        [other.experiment for other in published.all_rows()[:i]]
    ]  # fmt: skip
    with pytest.raises(InputError, match="names 14 runs: add -m"):
        compose_all(["experiment=table1/all"])
    with pytest.raises(InputError, match="unknown experiment 'tabel1/all'"):
        compose_all(["experiment=tabel1/all"], multirun=True)


def test_a_grid_goes_through_its_own_values_unless_told_otherwise():
    alphas = [0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.92, 1]
    configs = compose_all(["experiment=grid/alpha_resnet18", "seed=0,1"], multirun=True)
    assert [(c.method.alpha, c.seed) for c in configs] == [(alpha, seed) for alpha in alphas for seed in (0, 1)]
    assert {c.recipe.epochs for c in configs} == {50}
    one = compose_all(["experiment=grid/alpha_resnet50", "method.alpha=0.3"])
    assert [c.method.alpha for c in one] == [0.3]
    with pytest.raises(InputError, match=r"a sweep over .*: add -m"):
        compose_all(["experiment=grid/alpha_resnet50"])
    with pytest.raises(InputError, match="different values"):
        compose_all(["experiment=grid/alpha_resnet18,demo/bn"], multirun=True)


def test_intervals_and_power_agree_with_scipy():
    values = [70.1, 70.4, 70.2, 70.9]
    low, high = interval(sample(values))
    assert (low, high) == pytest.approx(stats.t.interval(0.95, 3, np.mean(values), stats.sem(values)))
    base = {0: 69.9, 1: 70.0, 2: 70.1, 3: 70.2}
    pgt = dict(enumerate(values))
    found = difference(pgt, base)
    exact = stats.ttest_rel(values, list(base.values())).confidence_interval(0.95)
    assert (found.low, found.high, found.n, found.paired) == (
        pytest.approx(exact.low),
        pytest.approx(exact.high),
        4,
        True,
    )
    other = {seed + 10: top1 for seed, top1 in base.items()}
    welch = stats.ttest_ind(values, list(base.values()), equal_var=False).confidence_interval(0.95)
    found = difference(pgt, other)
    assert (found.low, found.high, found.paired) == (pytest.approx(welch.low), pytest.approx(welch.high), False)
    assert np.isnan(difference({0: 1.0}, {0: 2.0}).low)
    assert difference({}, {0: 1.0}) is None


@pytest.mark.parametrize(("effect", "deviation", "pairs"), [(0.5, 0.5, 10), (1.0, 0.5, 5), (0.09, 0.2, 41)])
def test_seeds_needed_are_the_smallest_that_simulation_bears_out(effect, deviation, pairs):
    assert seeds_needed(effect, deviation) == pairs
    random = np.random.default_rng(0)

    def power(n):
        draws = random.normal(effect, deviation, (20_000, n))
        return (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean()

    assert power(pairs) > 0.785
    assert power(pairs - 1) < 0.805


@pytest.mark.parametrize(
    ("claim", "low", "high", "verdict"),
    [
        (0.5, 0.1, 0.9, "reproduced"),
        (2.0, 0.1, 0.9, "reproduced (smaller)"),
        (0.5, -0.3, 0.2, "not reproduced"),
        (0.5, -0.3, 0.8, "undecided"),
        (-0.3, -0.5, -0.1, "reproduced"),
        (-0.3, -0.1, 0.4, "not reproduced"),
        (-0.3, 0.1, 0.4, "not reproduced"),
        (0.5, 0.6, 0.9, "reproduced (larger)"),
    ],
)
def test_the_verdict_on_a_difference(claim, low, high, verdict):
    measured = Difference((low + high) / 2, low, high, 0.3, 3, paired=True)
    found = judge_difference(claim, measured)
    assert str(found).startswith(verdict)
    assert (found.seeds is not None) == (verdict == "undecided")


def test_a_bound_that_rounds_to_zero_has_no_sign():
    assert str(Difference(-0.1, -0.2, -0.004, 0.3, 3, paired=True)) == "−0.10 [−0.20, 0.00] (3 pairs)"


def test_the_verdict_on_an_accuracy():
    assert judge_accuracy(70.0, sample([70.0, 70.1, 69.9])).name == "reproduced"
    assert judge_accuracy(70.0, sample([69.0, 69.1, 68.9])).name == "not reproduced"
    wide = judge_accuracy(70.0, sample([70.0, 70.5, 69.5]))
    # t(n−1)·0.5/√n <= 0.3 holds from n = 14 on: 2.160·0.5/3.742 = 0.289; at 13 it is 2.179·0.5/3.606 = 0.302
    assert (wide.name, wide.seeds) == ("undecided", 14)
    assert str(judge_accuracy(70.0, Sample(70.0, float("nan"), 1))) == "undecided (n = 2 needed)"


def test_a_table_from_planted_runs():
    """For SE-ResNet-18 the baseline is as published and PGT is better; for ResNet-18 with step decay PGT is not."""
    plant("table1/seresnet18_cosine_baseline", [71.0, 71.1, 71.2])
    plant("table1/seresnet18_cosine_pgt", [71.4, 71.5, 71.6])
    plant("table1/resnet18_step_baseline", [69.6, 69.7, 69.8])
    plant("table1/resnet18_step_pgt", [69.62, 69.7, 69.81])
    plant("table1/resnet18_cosine_pgt", [70.0])
    plant("table1/resnet101_cosine_baseline", [70.0], status="diverged")
    plant("table1/resnet101_cosine_pgt", [70.0], status="unfinished")
    base, pgt = lines_of(1, 9)[0], lines_of(1, 10)[0]
    assert base.measured(BEST) == Sample(pytest.approx(71.1), pytest.approx(0.1), 3)
    assert base.measured(LAST).mean == pytest.approx(70.5)
    assert base.verdict.name == "reproduced"
    assert (pgt.difference(BEST).mean, pgt.difference(LAST).mean) == pytest.approx((0.4, -0.35))
    assert pgt.verdict.name == "reproduced"  # by the best epoch
    assert lines_of(1, 12)[0].verdict.name == "not reproduced"
    assert str(lines_of(1, 14)[0].verdict) == "undecided (baseline not run)"
    assert str(lines_of(1, 7)[0].verdict) == "diverged (1 of 1)"
    assert (list(lines_of(1, 8)[0].runs.status), lines_of(1, 8)[0].verdict.name) == (["unfinished"], "not run")
    assert lines_of(1, 1)[0].verdict.name == "not run"
    text = formats.render([paper_tables.paper_table(frame("runs"), 1)], "markdown")
    assert "| SE-ResNet-18 | cosine     | baseline" in text
    assert "71.50 ± 0.10" in text
    assert "+0.40 [0.40, 0.40] (3 pairs)" in text
    assert "[1] ResNet-50, step, 76.494" in text
    assert "`pgt train -m experiment=table1/seresnet50_cosine_pgt recipe=paper,authors seed=0` (43 GPU-h a run)" in text
    assert "`pgt train experiment=table1/seresnet18_cosine_pgt recipe=authors seed=0`" in text  # paper's is decided
    assert "table1/resnet101_cosine_baseline recipe=authors seed=0" in text  # paper's has diverged: again it would, too


@pytest.mark.parametrize(("finished", "verdict"), [(0, "2 of 2"), (3, "2 of 5")])
def test_the_verdict_says_that_runs_of_the_baseline_diverged(finished, verdict):
    plant("table2/batch256_pgt", [67.8, 67.9, 68.0])
    plant("table2/batch256_baseline", [66.7, 66.8, 66.9][:finished])
    plant("table2/batch256_baseline", [60.0, 60.0], status="diverged", seeds=(3, 4))
    pgt = lines_of(2, 8)[0]
    assert pgt.row.method == "pgt"
    assert str(pgt.verdict) == f"diverged (baseline: {verdict} diverged)"
    assert str(lines_of(2, 5)[0].verdict) == f"diverged ({verdict})"
    text = formats.render([paper_tables.paper_table(frame("runs"), 2)], "markdown")
    assert "table2/batch256_pgt seed" not in text  # nor does the table ask for more seeds


def test_a_baseline_with_finished_runs_goes_before_one_without():
    plant("table2/batch256_pgt", [67.8, 67.9], "data.backend=torchvision")
    plant("table2/batch256_baseline", [60.0], "data.backend=torchvision", status="diverged")
    plant("table2/batch256_baseline", [66.7, 66.8], "data.backend=dali")
    assert lines_of(2, 8)[0].difference(BEST).mean == pytest.approx(1.1)


def test_differences_in_training_and_gaps_are_beside_the_papers():
    plant("table1/seresnet18_cosine_baseline", [71.0, 71.2], train=71.4)
    plant("table1/seresnet18_cosine_pgt", [71.4, 71.6], train=71.9)
    plant("table3/row6", [76.9, 77.1], train=78.5)
    first, third = (paper_tables.paper_table(frame("runs"), number) for number in (1, 3))
    [pgt] = [row for row in first.rows if "71.436" in str(row) and "paper" in row]
    assert pgt[first.headers.index("Train diff: paper") :][:2] == ["+0.18", "+0.50 [0.50, 0.50] (2 pairs)"]
    [sixth] = [row for row in third.rows if row[0] == "6"]
    assert sixth[third.headers.index("Gap: paper") :][:2] == ["+1.502", "+1.50 ± 0.14"]
    assert any("minus test top-1" in str(note) for note in third.notes)
    narrow = paper_tables.paper_table(frame("runs"), 3, narrow=True)
    assert "Gap: paper" not in narrow.headers
    assert narrow.headers[-1] == "Verdict"


def test_seeds_are_asked_for_on_both_sides_of_a_difference():
    plant("table1/seresnet18_cosine_baseline", [71.0, 71.1, 71.2])
    plant("table1/seresnet18_cosine_pgt", [71.2, 71.2, 71.9])
    [line] = [line for line in lines_of(1, 10) if line.seeds]
    assert line.verdict.name == "undecided"
    seeds = ",".join(map(str, range(3, line.verdict.seeds)))
    text = formats.render([paper_tables.paper_table(frame("runs"), 1)], "markdown")
    for method in ("baseline", "pgt"):
        assert f"`pgt train -m experiment=table1/seresnet18_cosine_{method} seed={seeds}`" in text


def test_copies_of_a_run_count_once():
    plant("table1/resnet18_cosine_baseline", [70.1])
    shutil.copytree("runs/table1", "runs/backup")
    plant("table1/resnet18_cosine_pgt", [70.1], "method.alpha=1")
    [line] = [line for line in lines_of(1, 13) if line.seeds]
    assert (line.seeds, line.measured(BEST).n) == ([0], 1)


def test_runs_of_the_hook_count_only_in_the_rows_precision():
    plant("truncation/table1_resnet18_cosine_pgt", [1.0], "trainer.precision=fp32")
    lines, strays = paper.measure(frame("runs"), 1)
    assert all(not line.seeds for line in lines)
    assert strays == {("truncation/table1_resnet18_cosine_pgt", "trainer.precision=fp32 (not fp16)"): 1}


def test_runs_of_a_rows_experiment_that_are_another_setting_are_named():
    plant("table1/resnet18_cosine_pgt", [70.0, 70.1], "method.alpha=0.3")
    plant("table1/resnet18_cosine_pgt", [70.0], "trainer.evaluate_every=100")
    _, strays = paper.measure(frame("runs"), 1)
    assert {(count, how) for (_, how), count in strays.items()} == {
        (2, "method.alpha=0.3 (not 0.25)"),
        (1, "trainer.evaluate_every=100 (not 1)"),
    }


@pytest.mark.slow
def test_every_command_of_the_tables_composes():
    plant("table2/batch1024_baseline", [64.0, 64.1])
    plant("table2/batch1024_pgt", [64.0], "method.implementation=authors_hook", "recipe.local_batch=256")
    plant("table1/resnet18_cosine_baseline", [70.0, 70.4], "trainer.precision=bf16")
    commands = {
        c
        for n in (1, 2, 3)
        for c in re.findall(r"`pgt train ([^`]*)`", str(paper_tables.paper_table(frame("runs"), n).notes[-1]))
    }
    assert any("authors_hook" in command for command in commands)
    assert any("trainer.precision=bf16" in command for command in commands)
    for command in commands:
        overrides = command.removeprefix("-m ").split()
        assert compose_all(overrides, multirun=command.startswith("-m "))


def test_arms_and_settings_are_told_apart():
    plant("table3/row5", [76.0, 76.2])
    plant("table3/row5", [76.4, 76.6], "recipe=authors")
    plant("table3/row5", [76.5], "trainer.precision=bf16")
    plant("truncation/table3_row5", [75.0], "recipe=authors")
    plant("table1/resnet50_cosine_baseline", [75.9, 76.1])
    plant("table1/resnet50_cosine_baseline", [76.0, 76.1], "recipe=authors")
    lines = {(str(line.arm), line.setting): line for line in lines_of(3, 5)}
    assert set(lines) == {
        ("paper", ""),
        ("paper", "trainer.precision=bf16"),
        ("authors", ""),
        ("authors, authors' hook", ""),
    }
    assert lines["paper", ""].difference(BEST).mean == pytest.approx(0.1)
    assert lines["paper", "trainer.precision=bf16"].difference(BEST) is None  # there is no baseline in bf16
    assert str(lines["paper", "trainer.precision=bf16"].verdict) == "undecided (baseline not run)"
    assert lines["authors", ""].difference(BEST).mean == pytest.approx(0.45)
    hook = lines["authors, authors' hook", ""]  # compared with seed 0 of the same recipe
    assert hook.difference(BEST).mean == pytest.approx(-1.0)


def test_a_shared_run_fills_its_rows_in_both_tables():
    plant("table1/resnet50_cosine_pgt", [77.0, 77.2])
    assert lines_of(1, 4)[0].measured(BEST) == lines_of(3, 7)[0].measured(BEST) == sample([77.0, 77.2])


def test_a_run_that_leaves_the_recipe_fills_no_row_and_is_named():
    plant("table2/batch256_gc", [67.0], "recipe.epochs=50")
    plant("table2/batch256_gc", [67.1, 67.2], "method.transforms.0.max_norm=0.5")
    assert [(line.setting, line.measured(BEST).n) for line in lines_of(2, 6) if line.seeds] == [
        ("method.transforms.0.max_norm=0.5", 2)
    ]
    text = formats.render([paper_tables.paper_table(frame("runs"), 2)], "terminal")
    assert "- 1 run of table2/batch256_gc: recipe.epochs=50 (not 100)" in text


def test_csv_has_every_number_unrounded():
    plant("table1/resnet18_cosine_baseline", [70.123456])
    table = formats.render([paper_tables.paper_data(frame("runs"), [1])], "csv")
    line = list(csv.DictReader(io.StringIO(table)))[24]
    assert (line["experiment"], line["recipe"]) == ("table1/resnet18_cosine_baseline", "paper")
    assert (line["test_top1_best"], line["test_top1_paper"], line["seeds"]) == ("70.123456", "70.208", "0")
    assert (line["n"], line["diverged"], line["unfinished"]) == ("1", "0", "0")
    assert float(line["gap"]) == pytest.approx(70.0 - 70.123456)


def test_the_csv_says_what_its_differences_are_of_and_which_runs_have_no_numbers():
    plant("table1/resnet18_cosine_baseline", [70.0, 70.2], train=71.0)
    plant("table1/resnet18_cosine_pgt", [70.5, 70.9], train=71.5)
    plant("table1/resnet18_cosine_pgt", [1.0, 1.0], status="diverged", seeds=(2, 3))
    plant("table1/resnet18_cosine_pgt", [1.0], status="unfinished", seeds=(4,))
    lines = csv.DictReader(io.StringIO(formats.render([paper_tables.paper_data(frame("runs"), [1])], "csv")))
    [line] = [one for one in lines if (one["row"], one["recipe"], one["seeds"]) == ("14", "paper", "0 1")]
    assert (line["n"], line["diverged"], line["unfinished"]) == ("2", "2", "1")
    assert float(line["test_top1_best_diff"]) == pytest.approx(0.6)
    assert float(line["train_diff"]) == pytest.approx(0.5)
    assert (line["train_diff_n"], line["test_top1_best_diff_n"]) == ("2", "2")
    assert line["test_top1_best_diff_paired"] == "True"
    assert (line["train_diff_paper"], line["test_diff_paper"], line["gap_paper"]) == ("0.15", "0.09", "0.232")
    assert "test_diff" not in line


@pytest.mark.parametrize("ending", ["md", "csv", "tex", "txt"])
def test_table_command_writes_each_format(ending, capsys):
    assert main(["table", "all", "--output", f"out/t.{ending}"]) == 0
    text = Path(f"out/t.{ending}").read_text()
    assert text.count("77.952") >= 2
    assert main(["table", "1", "--output", "out/t.xls"]) == 2
    assert "end the name in one of .md, .csv, .tex, .txt" in capsys.readouterr().err


def test_a_latex_table_is_a_tabular_whose_notes_are_comments():
    for number in (1, 2, 3):
        lines = formats.render([paper_tables.paper_table(frame("runs"), number)], "latex").splitlines()
        notes = [line for line in lines if line.startswith("% ")]
        tabular = "\n".join(lines[len(notes) :])
        assert tabular.isascii()  # LaTeX knows every letter
        assert tabular.startswith(r"\begin{tabular}")
        assert tabular.endswith(r"\end{tabular}")
        for fact in (f"Table {number}:", "booktabs", "[7] All rows with PGT", f"pgt train -m experiment=table{number}"):
            assert any(fact in note for note in notes)


def test_every_published_number_is_in_the_tables():
    text = formats.render([paper_tables.paper_table(frame("runs"), number) for number in (1, 2, 3)], "markdown")
    for row in published.all_rows():
        assert f"{row.test_top1:.3f}" in text
        assert f"{row.train_top1:.2f}" in text
    everywhere = {number for number, doubt in published.NOTES.items() if doubt.about is None}
    assert everywhere == {4, 7}
    assert set(published.NOTES) == {n for row in published.all_rows() for n in row.notes} | everywhere
    assert asdict(published.rows(2)[1])["alpha"] == 0.92
