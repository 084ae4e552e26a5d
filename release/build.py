# SPDX-License-Identifier: Apache-2.0
"""Build the wheel and the source distribution of every member into a folder.

    python -m release.build --url=https://forge.example/owner/name --tag=v0.1.0 --out=dist

Links of a README to pages of the repository are relative, and would lead nowhere on a package index; here
they become links to the pages at the tag. The address is not in the files, because only the forge knows it.
Needs setuptools, and no network.
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILD = """
import sys
from setuptools import build_meta
out = sys.argv[1]  # setuptools replaces sys.argv while it builds
build_meta.build_sdist(out)
build_meta.build_wheel(out)
"""


def members() -> list[Path]:
    """Return the folders of all members."""
    workspace = tomllib.loads((ROOT / "pyproject.toml").read_text())
    return [ROOT / folder for folder in workspace["tool"]["uv"]["workspace"]["members"]]


def absolute_links(text: str, folder: Path, url: str, tag: str) -> str:
    """Replace relative links of a page by links to the repository.

    Args:
        text: of the page.
        folder: of the page.
        url: address of the repository.
        tag: tag or branch that the links lead to.

    Raises:
        ValueError: if a link leads to no file of the repository.
    """

    def link(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        path = (folder / target).resolve()
        if not path.exists() or not path.is_relative_to(ROOT):
            raise ValueError(f"{folder.name}/README.md: found a link to {target}, expected an existing file.")
        return f"]({url}/blob/{tag}/{path.relative_to(ROOT).as_posix()}{anchor})"

    return re.sub(r"\]\((?!\w+:|#)([^)#]+)(#[^)]*)?\)", link, text)


def build(member: Path, url: str, tag: str, out: Path) -> None:
    """Build one member from a copy, whose README and metadata have the address.

    Raises:
        subprocess.CalledProcessError: if setuptools fails; its output has been printed.
    """
    with tempfile.TemporaryDirectory() as temporary:
        copy = Path(temporary) / member.name
        shutil.copytree(member, copy, ignore=shutil.ignore_patterns("__pycache__", "build", "*.egg-info"))
        readme, project = copy / "README.md", copy / "pyproject.toml"
        readme.write_text(absolute_links(readme.read_text(), member, url, tag))
        urls = {"Source": url, "Documentation": f"{url}/tree/{tag}/docs", "Issues": f"{url}/issues"}
        urls["Changelog"] = f"{url}/blob/{tag}/CHANGELOG.md"
        lines = [f'{name} = "{address}"' for name, address in urls.items()]
        project.write_text("\n".join([project.read_text(), "[project.urls]", *lines, ""]))
        command = [sys.executable, "-c", BUILD, str(out.resolve())]
        done = subprocess.run(command, cwd=copy, capture_output=True, text=True)
        if done.returncode:
            print(done.stdout, done.stderr, file=sys.stderr)
            done.check_returncode()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--url", required=True, help="address of the repository")
    parser.add_argument("--tag", required=True, help="tag that links lead to")
    parser.add_argument("--out", type=Path, default=Path("dist"), help="folder of the files (default: dist)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for member in members():
        build(member, options.url.rstrip("/"), options.tag, options.out)
        print(f"{member.name}: built")


if __name__ == "__main__":
    main()
