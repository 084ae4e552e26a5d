# SPDX-License-Identifier: Apache-2.0
"""The docs site: the same blocks as on a forge, no broken link, and nothing loaded from elsewhere."""

import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import markdown
import pytest
from markdown_it import MarkdownIt

from tests.test_house import ROOT

BLOCKS = re.compile(r"<(h\d|p|pre|code|ul|ol|li|table|tr|th|td|a|img|em|strong|blockquote)\b")
LOADED = re.compile(r"""<(?:script|img|link)\b[^>]* (?:src|href)="?(?:https?:)?//|url\("?(?:https?:)?//""")


def build(root: Path, site: Path) -> str:
    """Build the site as `make docs` does, and return what it printed if that failed."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={site}"]
    ended = subprocess.run(command, cwd=root, capture_output=True, text=True)
    return ended.stderr if ended.returncode else ""


def test_the_site_loads_nothing_from_elsewhere(tmp_path):
    assert build(ROOT, tmp_path) == ""
    for page in (*tmp_path.rglob("*.html"), *tmp_path.rglob("*.css")):
        assert not LOADED.findall(page.read_text()), page
    examples = tmp_path / "repository" / "examples"
    assert "class</span>" in (examples / "own_task.py.html").read_text()
    assert "First look</h1>" in (examples / "first_look.ipynb.html").read_text()
    assert 'href="repository/examples/own_task.py.html"' in (tmp_path / "workbench.html").read_text()


def test_a_broken_link_fails_the_build(tmp_path):
    for name in ("docs", "release"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    links = "[a](nowhere.md), [b](imf.md#nowhere), [c](../nowhere.py)"
    (tmp_path / "docs" / "new.md").write_text(f"# New\n\n{links}\n")
    printed = build(tmp_path, tmp_path / "site")
    for text in ("'nowhere.md'", "'imf.md#nowhere'", "'../nowhere.py'", 'not included in the "nav"'):
        assert text in printed


@pytest.mark.parametrize("page", sorted((ROOT / "docs").rglob("*.md")), ids=lambda page: page.name)
def test_a_page_has_the_same_blocks_on_the_site_and_on_a_forge(page):
    """Such as a list right below a paragraph, which is a list on a forge only."""
    text = page.read_text()
    forge = MarkdownIt("commonmark").enable("table").render(text)
    site = markdown.markdown(text, extensions=["tables", "pymdownx.superfences"])
    assert Counter(BLOCKS.findall(forge)) == Counter(BLOCKS.findall(site))
