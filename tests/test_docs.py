"""The pages name files, headings, commands, modules and rooms that exist."""

import ast
import pkgutil
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


def code(page):
    """A page's shell lines, without comments, and the code within its sentences."""
    text = page.read_text()
    shell = "".join(block for language, block in FENCE.findall(text) if language == "sh")
    return [line.partition("#")[0] for line in shell.splitlines()] + re.findall(r"`([^`\n]+)`", FENCE.sub("", text))


def commands(page):
    """Each `pgt <command>` in a page's code."""
    return {found for line in code(page) for found in re.findall(r"(?<!\S)pgt (data [a-z]+|[a-z]+)", line)}


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
def test_files_and_modules_exist(page):
    for line in code(page):
        for path in re.findall(r"(?<![\w/.])(?:conf|examples|launch|pgt|results|scripts|tests)/[\w./-]*", line):
            assert (ROOT / path.rstrip(".")).exists(), f"{line}: there is no {path}"
        for module in re.findall(r"(?<![\w/.-])(?:pgt|scripts|tests)(?:\.\w+)+", line):
            pkgutil.resolve_name(module)
    for language, block in FENCE.findall(page.read_text()):
        for module, names in re.findall(r"^from (pgt[\w.]*) import (.*)$", block if language == "python" else "", re.M):
            for each in names.split(", "):
                pkgutil.resolve_name(f"{module}:{each}")


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


def test_every_room_is_on_the_maps():
    rooms = {path.parent.name for path in (ROOT / "pgt").glob("*/__init__.py")}
    tree = re.findall(r"^  (\w+)/", (ROOT / "docs/architecture.md").read_text(), re.MULTILINE)
    assert set(tree) == rooms
    assert set(re.findall(r"^\| `(\w+)/`", (ROOT / "CONTRIBUTING.md").read_text(), re.MULTILINE)) == rooms


def test_the_citation_is_complete():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation.keys() >= {"cff-version", "message", "title", "authors"}
    assert citation["version"] == __version__
    paper = citation["preferred-citation"]
    assert [author["family-names"] for author in paper["authors"]] == ["Das", "Mondal", "Lall", "Joshi", "Roy"]
    assert "2111.12495" in paper["url"]


def templates():
    """Every string of pgt/, with one mark in the place of each value."""
    for path in ROOT.glob("pgt/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                yield "".join(part.value if isinstance(part, ast.Constant) else "\0" for part in node.values)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
                yield node.value


def test_the_messages_of_the_troubleshooting_page_exist():
    """Each is quoted in the first column of a table, in backticks, with … in the place of what varies."""
    page = (ROOT / "docs/troubleshooting.md").read_text()
    quoted = re.findall(r"^\| ``? ?(.+?) ?``? \|", page, re.M)
    assert len(quoted) > 100
    known, unknown = [*templates()], []
    for message in quoted:
        pattern = re.compile(".*".join(re.escape(part.strip()) for part in message.split("…")), re.S)
        if not any(pattern.search(text) for text in known):
            unknown.append(message)
    assert not unknown, "pgt prints nothing like these any more"
