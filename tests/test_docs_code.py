"""The code of the pages runs. A block that cannot says why: `<!-- not run: REASON -->` on the line before it."""

import doctest
import importlib
import itertools
import json
import re
import shlex
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import nbformat
import pytest
import torch
import yaml
from nbclient import NotebookClient
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from pgt.cli.main import OPTIONS, main, parser
from pgt.config.compose import compose_all
from pgt.config.resources import own_conf
from tests.conftest import ROOT, train
from tests.test_docs import PAGES, name

BLOCK = re.compile(
    r"(?:^[^\n]*?`(?P<file>[\w./-]+\.(?:py|yaml))`[^\n]*:\n\n)?"  # the line before may name a file
    r"(?:^<!-- not run: (?P<reason>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.M | re.S,
)
TOUR = ROOT / "docs/tour.ipynb"

READERS = {"table", "figure", "plan", "status", "report"}
"""The commands that read runs, and are run here."""
FOREIGN = ("amplification", "correction", "demo/nobn", "mine")
"""The experiments of pages whose runs are not made here: the readers of runs say that there are none."""

SHELL_WORDS = {"cd", "cp", "."}
"""Commands of the shell that the pages use, and that no test needs to run."""


def blocks(text, language):
    """The blocks of a language that can run here."""
    return [found["code"] for found in BLOCK.finditer(text) if found["language"] == language and not found["reason"]]


def sections():
    """The Python of each section of a page: its blocks run one after the other, and know the names of those before."""
    for page in PAGES:
        found = {"": ""}
        for part in re.finditer(rf"{BLOCK.pattern}|^#+ (?P<heading>[^\n]*)$", page.read_text(), BLOCK.flags):
            if part["heading"]:
                found[part["heading"]] = ""
            elif part["language"] == "python" and not part["reason"]:
                found[[*found][-1]] += part["code"]
        for heading, code in found.items():
            slow = [pytest.mark.slow] if re.search(r"^(import|from) (lightning|transformers)", code, re.M) else []
            if code:
                yield pytest.param(code, id=f"{name(page)}: {heading}", marks=slow)


def lines():
    """Each simple command of the shell blocks, with its page."""
    for page in PAGES:
        for line in "".join(blocks(page.read_text(), "sh")).replace("\\\n", " ").splitlines():
            words = shlex.split(line.strip("()"), comments=True)
            while words:
                end = words.index("&&") if "&&" in words else len(words)
                yield page, words[:end]
                words = words[end + 1 :]


LINES = [*lines()]


def given(chosen=lambda words: True):
    """Parametrize a test by the commands of the pages."""
    some = [(page, words) for page, words in LINES if chosen(words)]
    places = [f"{name(page)}: {shlex.join(words)}" for page, words in some]
    return pytest.mark.parametrize(("page", "words"), some, ids=places)


@pytest.fixture
def stand_ins():
    """What the reader of a page has already: a network, data and an optimizer; and `runs/`, with finished runs."""
    Path("runs").symlink_to(ROOT / "results/runs")
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10))
    images, labels = torch.randn(8, 3, 8, 8), torch.randint(10, (8,))
    loader = DataLoader(TensorDataset(images, labels), batch_size=4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return {"model": model, "images": images, "labels": labels, "loader": loader, "optimizer": optimizer, "epochs": 2}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A runs folder with four runs of `demo/bn`."""
    root = tmp_path_factory.mktemp("trained")
    for method, rate in itertools.product(("baseline", "pgt"), (0.05, 0.1)):
        chosen = (f"method={method}", f"recipe.lr_peak={rate}")
        train(f"paths.runs={root}", "experiment=demo/bn", *chosen, "recipe.epochs=3")
    return root


@pytest.fixture
def own_files(monkeypatch):
    """A function that writes the files of a page, and sets the variables that name the folders of data."""

    def prepare(page):
        for variable in ("IMAGENET", "TINY_IMAGENET", "CIFAR", *re.findall(r"\b([A-Z_0-9]+)=DIR\b", page.read_text())):
            monkeypatch.setenv(variable, "DIR")
        for block in BLOCK.finditer(page.read_text()):
            comment = re.match(r"(?:# @package .*\n)?# ([\w./-]+\.(?:py|yaml))\n", block["code"])
            if block["file"] or comment:
                path = Path(block["file"] or comment[1])
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(block["code"])

    return prepare


@pytest.mark.filterwarnings("ignore")  # the frameworks' own
@pytest.mark.parametrize("code", [*sections()])
def test_python_runs(code, stand_ins):
    exec(compile(code, "page", "exec"), stand_ins)


def known_command(words, compose):
    """Whether a line of a page can be given: it is run, parsed or composed, as far as it goes here."""
    if re.match(r"\w+=", words[0]):  # a variable of the environment
        return known_command(words[1:], compose)
    if words[0] in ("torchrun", "srun"):
        return known_command(words[words.index("pgt") :], compose)
    if words[0] == "sbatch":
        [template] = [index for index, word in enumerate(words) if word.endswith(".sbatch")]
        return known_command(["pgt", "train", *words[template + 1 :]], compose)
    if words[:2] == ["pgt", "train"]:
        return compose([word for word in words[2:] if word != "..."])
    if words[0] == "pgt":
        with own_conf(config_dirs(words)):
            return words[1] in OPTIONS or parser(words[1]).parse_intermixed_args(words[2:]) is not None
    if words[0] in ("pip", "uv"):
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        return {extra for word in words for extra in re.findall(r"\[([\w-]+)\]", word)} <= {*extras}
    if words[0] == "make":
        return all(re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M) for target in words[1:])
    if words[0] == "python":
        return words[1] == "-m" or (ROOT / words[1]).is_file()
    return words[0] in SHELL_WORDS or (words[0] == "export" and all("=" in word for word in words[1:]))


def config_dirs(words):
    return [words[words.index("--config-dir") + 1]] if "--config-dir" in words else []


def composed(arguments, first_only):
    """Compose the jobs of `pgt train`, or the first one: with the first value of each key that is swept."""
    if "--cfg" in arguments:
        return main(["train", *arguments]) == 0
    folders = config_dirs(arguments)
    overrides = [word for word in arguments if word not in ("-m", "--config-dir", *folders)]
    if first_only:
        overrides = [re.sub(r"(=[^,\[{(]*),.*", r"\1", word) for word in overrides]
        experiments = [word.partition("=")[2] for word in overrides if word.startswith("experiment=")]
        given = {word.partition("=")[0] for word in overrides}
        files = (Path(each, "experiment", f"{name}.yaml") for each in (ROOT / "conf", *folders) for name in experiments)
        for file in files:
            swept = yaml.safe_load(file.read_text()).get("sweep", {}) if file.exists() else {}
            overrides += [f"{key}={values[0]}" for key, values in swept.items() if key not in given]
    several = not first_only or any(re.search(r"/all$|=interval\(", word) for word in overrides)
    with own_conf(folders):
        return not overrides or bool(compose_all(overrides, several and "-m" in arguments))


@given()
def test_shell_lines_can_be_given(page, words, own_files):
    own_files(page)
    assert known_command(words, partial(composed, first_only=True)), f"{shlex.join(words)} is not tested"


@pytest.mark.slow
@given(lambda words: words[:2] == ["pgt", "train"] and "-m" in words)
def test_every_job_of_a_sweep_composes(page, words, own_files):
    own_files(page)
    assert composed(words[2:], first_only=False)


@pytest.mark.slow
@given(lambda words: words[0] == "pgt" and words[1] in READERS)
def test_commands_that_read_runs_run(page, words, own_files, trained, capsys):
    own_files(page)
    Path("runs").symlink_to(trained)
    code, said = main(words[1:]), capsys.readouterr().err
    if any(word.startswith(FOREIGN) for word in words[2:]):
        assert (code, "no runs under" in said) == (2, True)
    else:
        assert code == 0, said


MODULES = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in sorted(ROOT.glob("pgt/**/*.py"))
           if re.search(r">>> .*(?<!SKIP)$", path.read_text(), re.M)]  # fmt: skip


@pytest.mark.parametrize("module", MODULES)
def test_examples_in_docstrings_run(module, stand_ins):
    result = doctest.testmod(importlib.import_module(module), extraglobs=stand_ins)
    assert result.attempted
    assert not result.failed


def test_the_tour_is_committed_with_small_outputs_and_no_path():
    tour = nbformat.read(TOUR, as_version=4)
    assert all(cell.execution_count for cell in tour.cells if cell.cell_type == "code")
    assert len(TOUR.read_text()) < 100_000
    outputs = json.dumps([cell.outputs for cell in tour.cells if cell.cell_type == "code"])
    assert "image/png" in outputs
    assert not re.search(r"/(home|root|tmp|work|usr|Users)/", outputs)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of the kernel's client
def test_the_tour_runs_and_prints_what_is_committed(monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    committed = nbformat.read(TOUR, as_version=4)
    tour = nbformat.read(TOUR, as_version=4)
    NotebookClient(tour, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}).execute()
    for before, after in zip(committed.cells, tour.cells, strict=True):
        if before.cell_type == "code" and "main(" not in before.source:  # training differs from machine to machine
            assert printed(after) == printed(before), before.source


def printed(cell):
    return "".join(output.text for output in cell.outputs if output.output_type == "stream" and output.name == "stdout")


@pytest.mark.slow
def test_the_site_is_built_and_loads_nothing_from_elsewhere(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "-f", str(ROOT / "mkdocs.yml"), "-d", str(tmp_path / "site")]
    done = subprocess.run([*command, "--strict"], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    pages = {path: path.read_text() for path in (tmp_path / "site").rglob("*.html")}
    assert len(pages) > 15
    for path, text in pages.items():
        loaded = re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=\"?(https?:[^\" >]+)", text)
        assert not loaded, f"{path} loads {loaded}"
