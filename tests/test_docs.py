"""The pages name files, headings and commands that exist."""

import re

import pytest
import yaml

from pgt import __version__
from pgt.cli.main import main
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "results/README.md", *sorted(ROOT.glob("docs/*.md"))]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")


def name(page):
    return str(page.relative_to(ROOT))


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(page):
    """Each `pgt <command>` in a page's shell lines, comments apart, and in the code within its sentences."""
    text = page.read_text()
    shell = "".join(code for language, code in FENCE.findall(text) if language == "sh")
    lines = [line.partition("#")[0] for line in shell.splitlines()] + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))
    return {found for line in lines for found in re.findall(r"(?<!\S)pgt(?:\.cli)? (data [a-z]+|[a-z]+)", line)}


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_relative_links_point_to_files_and_headings(page):
    for link in LINK.findall(FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), f"{link}: there is no {target}"
        assert not anchor or anchor in anchors(target), f"{link}: {target} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_commands_exist(page, capsys):
    for command in commands(page):
        try:
            code = main([*command.split(), "--help"])
        except SystemExit as left:
            code = left.code
        assert code == 0, f"pgt {command} is no command"


def test_every_command_is_documented(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    known = set(re.findall(r"^ {4}([a-z]+) ", capsys.readouterr().out, re.MULTILINE))
    assert known >= {"train", "table", "data"}
    assert {command.split()[0] for command in commands(ROOT / "docs/commands.md")} == known


def test_the_citation_is_complete():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}
    assert citation["version"] == __version__
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Das", "Mondal", "Lall", "Joshi", "Roy"]
    assert "2111.12495" in paper["url"]
