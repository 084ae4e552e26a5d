# SPDX-License-Identifier: Apache-2.0
"""Hook of mkdocs: a file outside docs/ that a page links to becomes a page of the site.

Such links are relative, as in `[loop](../examples/perceive.py)`, so that they work in the repository. The
site shows the file under `repository/`, and its links lead there: the address of the forge is not in the
files. A link to nothing stays as it is, and mkdocs reports it.
"""

import json
import os
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page

_LINK = re.compile(r"(?<=\]\()[^)#\s]+(?=\))")
_LANGUAGES = {".py": "python", ".sh": "bash", ".md": "markdown"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file outside docs/ that a page links to."""
    linked = set()
    for page in files.documentation_pages():
        linked |= {_outside(link, page, config) for link in _LINK.findall(page.content_string)}
    for name in sorted(linked - {""}):
        content = _as_markdown(Path(config.docs_dir).parent / name, name)
        page = File.generated(config, _page(name), content=content, inclusion=InclusionLevel.NOT_IN_NAV)
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Lead links to such files to their pages."""

    def link(match: re.Match[str]) -> str:
        name = _outside(match[0], page.file, config)
        return os.path.relpath(_page(name), Path(page.file.src_uri).parent) if name else match[0]

    return _LINK.sub(link, markdown)


def _page(name: str) -> str:
    return f"repository/{name}.md"


def _as_markdown(path: Path, name: str) -> str:
    """Return the text of a page that shows a file: the cells of a notebook, or its code."""
    where = f"`{name}` in the repository"
    if path.suffix != ".ipynb":
        code = _block(_LANGUAGES.get(path.suffix, "text"), path.read_text())
        return f"# `{path.name}`\n\n{where}:\n\n{code}"
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(path.read_text())["cells"]]
    texts = [text if kind == "markdown" else _block("python", text) for kind, text in cells]
    return "\n\n".join([*texts, f"This notebook is {where}."])


def _block(language: str, code: str) -> str:
    return f"````{language}\n{code.rstrip()}\n````"


def _outside(link: str, page: File, config: MkDocsConfig) -> str:
    """Return the path in the repository that a link leads to if that is a file outside docs/, else ""."""
    docs = Path(config.docs_dir).resolve()
    path = (docs / page.src_uri).parent.joinpath(link).resolve()
    outside = path.is_file() and path.is_relative_to(docs.parent) and not path.is_relative_to(docs)
    return path.relative_to(docs.parent).as_posix() if outside else ""
