"""The column "epochs to the baseline's best", from planted runs."""

import csv
import io
from pathlib import Path

from pgt.cli.main import main
from pgt.reproduction import tables
from pgt.reproduction.formats import render
from pgt.reproduction.groups import read_groups
from tests.reproduction.helpers import plant

HEADER = "Epochs to the baseline's best"


def plant_comparison():
    """The test accuracy of an epoch is 1 below its planted training accuracy."""
    plant("demo/bn", "baseline", 0, 91, 90, curve=(60, 70, 80, 91))
    plant("demo/bn", "baseline", 1, 81, 80, curve=(60, 81, 80, 80))
    plant("demo/bn", "gcw", 0, 92, 91, curve=(60, 91, 70, 92))
    plant("demo/bn", "gcw", 1, 85, 84, curve=(60, 70, 80, 85))
    plant("demo/bn", "gcode", 0, 95, 94, curve=(60, 70, 95, 91))
    plant("demo/bn", "gcode", 1, 70, 69, curve=(60, 70, 60, 65))
    plant("demo/bn", "gcode", 2, 99, 98, curve=(99, 99, 99, 99))  # the baseline has no such seed
    plant("demo/bn", "gcgd", 0, 50, 49, status="unfinished", curve=(50,))


def test_the_first_epoch_that_is_as_good_counts_by_seed():
    plant_comparison()
    printed = tables.experiment_table(read_groups(Path("runs"), "demo/bn"))
    column = list(printed.headers).index(HEADER)
    assert {row[1]: row[column] for row in printed.rows} == {
        "baseline": "3.00 ± 1.41",
        "gcw": "3.00 ± 1.41",
        "gcode": "3.00 (n=1), 1 never",
        "gcode+gcw": "",
    }
    assert "about 20%" in render([printed], "markdown")


def test_a_run_whose_records_are_damaged_spoils_its_own_cell_alone():
    plant_comparison()
    summary = plant("demo/bn", "gcw", 2, 92, 91, curve=(60, 92))
    plant("demo/bn", "baseline", 2, 91, 90, curve=(60, 91))
    Path("runs/demo/bn", summary.run_id, "metrics.jsonl").write_text("")
    printed = tables.experiment_table(read_groups(Path("runs"), "demo/bn"))
    cells = {row[1]: row[list(printed.headers).index(HEADER)] for row in printed.rows}
    assert "lacks epochs that summary.json counts" in cells["gcw"]
    assert cells["gcode"] == "2.00 ± 1.41, 1 never"


def test_the_numbers_are_in_the_csv():
    plant_comparison()
    assert main(["table", "demo/bn", "--output", "table.csv"]) in (0, None)
    rows = {row["method"]: row for row in csv.DictReader(io.StringIO(Path("table.csv").read_text()))}
    assert (rows["gcw"]["epochs_to_baseline"], rows["gcw"]["never_to_baseline"]) == ("3.0", "0")
    assert (rows["gcode"]["epochs_to_baseline"], rows["gcode"]["never_to_baseline"]) == ("3.0", "1")
    assert rows["gcode+gcw"]["epochs_to_baseline"] == ""


def test_label_smoothing_is_measured_by_the_plain_baseline_and_a_method_by_its_own():
    for epsilon, last in ((0, 81), (0.1, 71)):
        overrides = [f"method.label_smoothing={epsilon}"]
        plant("demo/bn", "baseline", 0, 91, last - 1, curve=(60, last), overrides=overrides)
        plant("demo/bn", "gcw", 0, 91, 74, curve=(75, 60), overrides=overrides)
    printed = tables.experiment_table(read_groups(Path("runs"), "demo/bn"))
    column = list(printed.headers).index(HEADER)
    assert [row[column] for row in printed.rows] == ["2.00 (n=1)", "1 never", "1 never", "1.00 (n=1)"]


def test_other_experiments_have_no_such_column():
    plant("demo/bn", "baseline", 0, 91, 90, curve=(60, 91))
    plant("demo/bn", "pgt", 0, 91, 90, curve=(60, 91))
    assert HEADER not in tables.experiment_table(read_groups(Path("runs"), "demo/bn")).headers
