"""The verdicts on the claims of docs/evidence.md."""

import math
import re
from collections import defaultdict

import pandas as pd
import pytest

from pgt.core.errors import InputError
from pgt.reproduction.groups import LAST, TRAIN
from pgt.reproduction.statistics import Sample, signed
from scripts import evidence
from scripts.evidence import BEST, CHANCE, HOOK, LOGITS, LOSS, LOSS_ALPHA, METHODS, NOBN_RATES
from tests.conftest import ROOT


def near(mean):
    """Values of three seeds about a mean."""
    return {0: mean - 0.1, 1: mean, 2: mean + 0.1}


def row(experiment, method, alpha, rate, seed, top1, **more):
    values = {"experiment": experiment, "method": method, "alpha": alpha, "recipe.lr_peak": rate, "seed": seed}
    losses = {LOGITS: 10.0 / alpha, LOSS: 4.0 if alpha == 1 else 5.0, LOSS_ALPHA: 4.1}
    group = " ".join(map(str, (experiment, method, alpha, rate)))
    same = {"status": "finished", "group_id": group, "manifest": "f", "recipe.epochs": 10}
    return values | same | {TRAIN: top1, LAST: top1} | losses | more


def runs():
    """As the paper has it: PGT gains a point at each rate, and the more without batch norm."""
    found = []
    for seed in range(5):
        noise = 0.1 * (seed % 3)
        for alpha in (1.0, 0.25) if seed > 2 else (1.0, 0.5, 0.25, 0.1, 0.05):
            method = "baseline" if alpha == 1 else "pgt"
            found.append(row("tiny/bn", method, alpha, 0.1, seed, 20 + (alpha != 1) + noise * (1 + 0.1 * alpha)))
    for seed in range(3):
        for rate, top1 in ((0.05, 19), (0.2, 18)):
            found.append(row("tiny/bn", "baseline", 1.0, rate, seed, top1 + 0.1 * seed))
            found.append(row("tiny/bn", "pgt", 0.25, rate, seed, top1 + 1 + 0.11 * seed))
        for alpha in (0.25, 0.05):
            found.append(row("tiny/bn", HOOK, alpha, 0.1, seed, 20.0, **{LOGITS: 4.0 / alpha}))
    for place, (method, alpha) in enumerate(METHODS.items()):
        own = NOBN_RATES[place % 4]
        for rate in NOBN_RATES:
            found.append(row("tiny/nobn", method, alpha, rate, 100, 10 + (rate == own)))
        for rate in {own, NOBN_RATES[0]}:
            found += [row("tiny/nobn", method, alpha, rate, seed, 10 + place + 0.1 * seed) for seed in range(3)]
    return pd.DataFrame(found)


def verdicts(frame):
    found, missing = evidence.judge(frame)
    return {claim: finding.verdict for claim, finding in found.items()}, missing


def number(found, claim, what):
    [one] = [one for one in found[claim].numbers if one.what == what]
    return one


def changed(frame, name, value, **where):
    chosen = pd.Series(True, frame.index)
    for column, wanted in where.items():
        chosen &= frame[column] == wanted
    assert chosen.any()
    return frame.assign(**{name: frame[name].mask(chosen, value)})


def test_every_claim_has_a_verdict():
    found, missing = verdicts(runs())
    assert [found.pop("other α"), found.pop("other rates")] == ["", ""]
    assert (set(found.values()), missing) == ({"holds"}, {})
    assert {*found} == {f"E{number}" for number in range(1, 9)}


@pytest.mark.parametrize(
    ("claim", "change", "verdict"),
    [
        ("E1", (LAST, 20.0, {"method": "pgt", "alpha": 0.25, "recipe.lr_peak": 0.1}), "fails"),
        ("E2", (TRAIN, 21.0, {"method": "pgt", "alpha": 0.25, "seed": 0}), "holds"),
        ("E3", (LOGITS, 17.0, {"experiment": "tiny/bn", "alpha": 0.5}), "roughly"),
        ("E3", (LOGITS, 14.0, {"experiment": "tiny/bn", "alpha": 0.5}), "fails"),
        ("E4", (LOSS_ALPHA, 4.3, {"alpha": 0.05, "method": "pgt"}), "roughly"),
        ("E4", (LOSS_ALPHA, 3.5, {"alpha": 0.05, "method": "pgt"}), "fails"),
        ("E4", (LOSS, 4.1, {"alpha": 0.5}), "roughly"),
        ("E5", (LAST, 22.0, {"method": "baseline", "recipe.lr_peak": 0.2}), "fails"),
        ("E6", (LAST, 16.0, {"method": "gc+pgt", "experiment": "tiny/nobn"}), "fails"),
        ("E6", (LAST, 20.0, {"method": "gc+pgt", "experiment": "tiny/nobn", "seed": 1}), "does not lead"),
        ("E7", (LAST, 40.0, {"method": BEST, "recipe.lr_peak": 0.0125, "seed": 2}), "leads"),
        ("E8", (LOGITS, 120.0, {"method": HOOK, "alpha": 0.05, "seed": 1}), "partly"),
        ("E8", (LOGITS, 190.0, {"method": HOOK, "alpha": 0.05}), "fails"),
    ],
)
def test_a_claim_is_judged_by_its_numbers(claim, change, verdict):
    name, value, where = change
    found, _ = verdicts(changed(runs(), name, value, **where))
    assert found[claim] == verdict


def test_a_diverged_run_counts_as_chance_and_has_no_logits():
    frame = changed(runs(), "status", "diverged", method="pgt", alpha=0.25)
    found, _ = evidence.judge(changed(frame, LAST, math.nan, method="pgt", alpha=0.25))
    assert number(found, "E1", f"{LAST}, α=0.25").value.mean == CHANCE
    assert [found[claim].verdict for claim in ("E1", "E3", "E4")] == ["fails", "undecided", "undecided"]


def test_a_claim_without_its_runs_has_no_verdict():
    frame = runs()
    searched = (frame.seed == 100) & (frame.method == "gc")
    found, missing = verdicts(frame[(frame.seed != 4) & (frame["recipe.lr_peak"] != 0.2) & ~searched])
    assert missing == {
        "E1": "tiny/bn baseline lr_peak=0.1, seed 4",
        "E2": "tiny/bn baseline lr_peak=0.1, seed 4",
        "E5": "tiny/bn baseline lr_peak=0.2, seed 0–2",
        "E6": "tiny/nobn gc lr_peak=0.0125, seed 100",
        "other rates": "tiny/bn pgt α=0.25 lr_peak=0.2, seed 0–2",
    }
    assert found.keys() == {"E3", "E4", "E7", "E8", "other α"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("recipe.epochs", 1, {"seed": 2, "alpha": 0.5}), "runs of tiny/bn differ in recipe.epochs"),
        (("manifest", "g", {"seed": 2, "experiment": "tiny/nobn"}), "runs of tiny/nobn differ in manifest"),
        (("group_id", "other", {"seed": 2, "alpha": 0.5}), "tiny/bn pgt α=0.5 lr_peak=0.1 has runs of different"),
    ],
)
def test_runs_of_another_setting_are_refused(change, message):
    name, value, where = change
    with pytest.raises(InputError, match=message):
        evidence.judge(changed(runs(), name, value, **where))


def test_a_folder_without_runs_is_bad_input(capsys):
    with pytest.raises(SystemExit) as caught:
        evidence.main(["--runs", "nowhere"])
    assert caught.value.code == 2
    assert "no runs under nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("mean", "deviation", "verdict"),
    [
        (1.0, 0.3, "holds"),
        (-1.0, 0.3, "fails"),
        (0.0, 0.05, "fails"),
        (0.1, 0.01, "fails"),  # above 0, and smaller than 0.2
        (0.05, 0.3, "undecided"),
    ],
)
def test_a_gain_is_judged_by_its_interval(mean, deviation, verdict):
    assert evidence.judged_gain(Sample(mean, deviation, 3)) == verdict


def test_of_equal_rates_the_smaller_is_the_best():
    assert evidence.best_rate({0.1: near(10), 0.05: near(10), 0.2: near(9)}) == 0.05


@pytest.mark.parametrize(
    ("ours", "verdict"), [(near(13), "holds"), (near(11), "leads"), ({0: 20, 1: 1, 2: 14}, "leads")]
)
def test_methods_of_equal_accuracy_count_alike(ours, verdict):
    """However they are ordered; and whoever shares the first place leads."""
    top1 = {"gc": near(11), "pgt": {0: 11.5, 1: 11.0, 2: 10.5}, BEST: ours}
    for order in (list(top1), list(reversed(top1))):
        assert evidence.judged_best({method: top1[method] for method in order}) == verdict


def test_the_other_alphas_have_wider_intervals():
    found, _ = evidence.judge(runs())
    other = number(found, "other α", f"{LAST}, α=0.5 − baseline")
    assert other.confidence == 0.9875
    half = 8.86 * other.value.deviation / math.sqrt(3)  # the quantile of Student's t with two degrees of freedom
    assert other.interval[1] - other.value.mean == pytest.approx(half, rel=1e-3)


RESULTS = (ROOT / "docs/evidence.md").read_text().partition("\n## Results\n")[2]
TABLE = re.compile(r"(?:^\|.*\n)+", re.MULTILINE)
NUMBER = re.compile(r"(?<![\w.])[+-]?\d+\.\d+")
MEAN = re.compile(r"[+−]?\d+\.\d+ (?:± \d+\.\d+|\([+−]\d+\.\d+ to [+−]\d+\.\d+\))")
"""`16.88 ± 0.35`, or `+0.35 (−0.33 to +1.02)`."""


def numbers_in(text):
    return NUMBER.findall(text.replace("−", "-"))


def rows_of(table):
    """The cells of each row, without the header."""
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def beside_deviation(mean, deviation):
    return f"{mean:.2f} ± {deviation:.2f}"


def with_interval(mean, low, high):
    return f"{signed(mean)} ({signed(low)} to {signed(high)})"


def are_in_order(printed, numbers):
    """Whether means of a page are those of these rows of the CSV, some perhaps left out."""
    rest = iter(numbers)
    return all(any(text in forms(number) for number in rest) for text in printed)


def forms(number):
    return beside_deviation(number.mean, number.deviation), with_interval(number.mean, number.low, number.high)


@pytest.fixture
def committed():
    """The rows of the committed CSV by claim."""
    table = pd.read_csv(ROOT / "results/tables/evidence.csv")
    return {claim: [*rows.itertuples()] for claim, rows in table.groupby("claim")}


def claims_on_the_page():
    """Claims and cells of each row about claims. One that names no claim goes on with that of the row above."""
    for table in TABLE.findall(RESULTS):
        claims = []
        for cells in rows_of(table):
            if named := re.match(r"E(\d)(?: (?:to|and) E(\d))?", cells[0]):
                claims = [f"E{number}" for number in range(int(named[1]), int(named[2] or named[1]) + 1)]
            if claims:
                yield claims, cells


def test_each_claim_on_the_page_has_its_own_numbers_and_verdict(committed):
    """In the order of the CSV."""
    none, said = "no verdict yet", defaultdict(set)
    known = {none, "holds", "fails", "undecided", "roughly", "partly", "leads", "does not lead"}
    for claims, cells in claims_on_the_page():
        for claim in claims:
            assert are_in_order(MEAN.findall("|".join(cells)), committed.get(claim, [])), (claim, cells)
            said[claim] |= known & {cell.strip("*") for cell in cells}
    names = [f"E{number}" for number in range(1, 9)]
    assert said == {name: {committed[name][0].verdict_of_claim if name in committed else none} for name in names}
    [other] = re.findall(rf"^The other values of α.*\n\n({TABLE.pattern})", RESULTS, re.MULTILINE)
    assert are_in_order(MEAN.findall(other), committed["other α"])
    [rates] = re.findall(rf"^PGT at each learning rate.*\n\n({TABLE.pattern})", RESULTS, re.MULTILINE)
    assert all(are_in_order(MEAN.findall(line), committed["other rates"]) for line in rates.splitlines())


SIDE_BY_SIDE = {
    "baseline": "baseline",
    "PGT, α = 0.25": "pgt",
    "AGC": "agc",
    "amplification, `cancellation`": "amplification method.transforms.0.measure=cancellation",
    "amplification, `cancellation_per_weight`": "amplification method.transforms.0.measure=cancellation_per_weight",
    "GC-W": "gcw",
    "GC-ODE": "gcode",
    "GCGD": "gcode+gcw",
}
"""Rows of the page, and method and setting in the CSV."""


def test_each_method_side_by_side_has_its_own_numbers_and_verdict():
    measured = pd.read_csv(ROOT / "results/tables/tiny.csv")
    measured = measured[measured.experiment == "tiny/methods"]
    by_method = measured.set_index((measured.method + " " + measured.setting.fillna("")).str.strip())
    [table] = TABLE.findall(RESULTS.partition("### The methods side by side")[2])
    page = {cells[0]: cells[1:6] for cells in rows_of(table)}
    assert (page.keys(), {*by_method.index}) == (SIDE_BY_SIDE.keys(), {*SIDE_BY_SIDE.values()})
    for name, method in SIDE_BY_SIDE.items():
        row, expected = by_method.loc[method], []
        for top1, difference in ((TRAIN, "train_diff"), (LAST, "test_diff")):
            interval = with_interval(*(row[difference + part] for part in ("", "_low", "_high")))
            expected += [beside_deviation(row[top1], row[f"{top1}_deviation"]), interval if name != "baseline" else ""]
        verdict = evidence.judged_gain(Sample(row.test_diff, row.test_diff_deviation, row.n))
        assert page[name] == [*expected, verdict if name != "baseline" else ""]


def test_what_the_readme_says_of_this_page_is_on_it(committed):
    """Rounded perhaps. A claim's numbers stand beside its verdict or none."""
    known, means = [float(number) for number in numbers_in(RESULTS)], {*MEAN.findall(RESULTS)}
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if "](docs/evidence.md" in line]
    rows = [line.replace("95%: ", "") for line in lines if line.startswith("|")]
    assert len(means & {*MEAN.findall("".join(rows))}) >= 2
    for row in rows:
        for number in numbers_in(row):
            digits = len(number.partition(".")[2])
            assert number.lstrip("+") in {f"{value:.{digits}f}" for value in known}, row
        printed = MEAN.findall(row)
        assert means.issuperset(printed), row
        claims = [claim for claim, found in committed.items() if any({*forms(one)} & {*printed} for one in found)]
        said = {*re.findall(r"\b(?:holds|fails|undecided|reproduced)\b", row)}
        assert said <= {committed[claim][0].verdict_of_claim for claim in claims}, row


def test_every_number_in_the_tables_of_the_page_has_been_measured():
    """It is a number of the CSV files, or of the benchmark for the times of steps, rounded."""
    files = [ROOT / "results" / name for name in ("tables/tiny.csv", "tables/evidence.csv", "bench/methods-cpu.md")]
    known = [float(n) for file in files if file.exists() for n in NUMBER.findall(file.read_text())]
    numbers = numbers_in("".join(TABLE.findall(RESULTS)))
    assert len(numbers) > 50
    digits = {number: len(number.partition(".")[2]) for number in numbers}
    assert [n for n, d in digits.items() if not any(f"{value:.{d}f}" == n.lstrip("+") for value in known)] == []


def test_the_committed_verdicts_are_current(tmp_path, capsys):
    """Fails if results/runs or the code has changed and `make tables` was not run."""
    evidence.main(["--runs", str(ROOT / "results/runs"), "--output", str(tmp_path / "evidence.csv")])
    assert (tmp_path / "evidence.csv").read_text() == (ROOT / "results/tables/evidence.csv").read_text()
