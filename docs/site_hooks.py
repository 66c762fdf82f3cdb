"""Hooks of mkdocs: the site shows some files outside docs/, too, and links to them lead there."""

import os
import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ("CHANGELOG.md", "CONTRIBUTING.md", "examples/*.py", "launch/*.sbatch", "results/**/*.md")
"""The files outside docs/ that the site has, at their paths in the repository."""

LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]+)\]\((?P<path>[^)#\s:]+)(?P<anchor>#[^)\s]*)?\)")
CODE = re.compile(r"`[^`\n]+`")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for pattern in SHOWN:
        for path in sorted(ROOT.glob(pattern)):
            files.append(File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to the places of files on the site. The text of a link to a file that it lacks stays as it is.

    GitHub wants a bar within code within a table escaped, and Python-Markdown shows the escape.
    """
    outside = page.file.generated_by is not None
    folder = posixpath.dirname(page.file.src_uri if outside else f"docs/{page.file.src_uri}")

    def on_site(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link["path"]))
        uri = "index.md" if path == "README.md" else path.removeprefix("docs/")
        if files.get_file_from_path(uri) is None:
            return link["text"] if (ROOT / path).exists() else link[0]
        relative = os.path.relpath(uri, posixpath.dirname(page.file.src_uri) or ".")
        return f"[{link['text']}]({relative}{link['anchor'] or ''})"

    return CODE.sub(lambda code: code[0].replace("\\|", "|"), LINK.sub(on_site, markdown))
