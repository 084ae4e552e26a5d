# SPDX-License-Identifier: Apache-2.0
"""The wheels: what is in them, and whether they work in an environment of their own."""

import os
import re
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from release.build import ROOT, absolute_links, build, members
from release.reduced_size import reduced
from release.run_docs import COMMANDS

from tests.test_docs import commands_of

URL = "https://forge.example/owner/name"


@pytest.fixture(scope="module")
def wheels(tmp_path_factory) -> dict[str, Path]:
    out = tmp_path_factory.mktemp("dist")
    for member in members():
        build(member, URL, "v0", out)
    assert len(list(out.glob("*.tar.gz"))) == len(members())
    return {path.name.partition("-")[0]: path for path in out.glob("*.whl")}


@pytest.mark.slow
def test_wheels_are_complete(wheels):
    assert len(wheels) == len(members())
    for name, wheel in wheels.items():
        with zipfile.ZipFile(wheel) as file:
            files = file.namelist()
            metadata = file.read(next(path for path in files if path.endswith("/METADATA"))).decode()
        assert f"{name}/py.typed" in files
        assert any(path.endswith("licenses/LICENSE") for path in files)
        for field in ("Author", "License-Expression", "Project-URL", "Classifier", "Keywords"):
            assert re.search(rf"^{field}: .", metadata, re.M), f"{name}: no {field}"
        links = re.findall(r"\]\(([^)]*)\)", metadata)
        assert links
        assert all(link.startswith(URL) for link in links), links
        source = {path.name for path in (ROOT / _folder(name) / "src" / name).rglob("*") if path.is_file()}
        packed = {Path(path).name for path in files}
        assert {path for path in source if not path.endswith(".pyc")} <= packed


def _folder(name: str) -> str:
    return "processors" if name == "lerobot_processor_so101" else name


def test_links_that_lead_nowhere_are_refused():
    page = "[a](../LICENSE), [b](https://x.example), [c](#here), [d](../docs/imf.md#options)"
    expected = f"[a]({URL}/blob/v1/LICENSE), [b](https://x.example), [c](#here), "
    expected += f"[d]({URL}/blob/v1/docs/imf.md#options)"
    assert absolute_links(page, ROOT / "processors", URL, "v1") == expected
    with pytest.raises(ValueError, match=r"found a link to missing\.md"):
        absolute_links("[a](missing.md)", ROOT / "processors", URL, "v1")


@pytest.mark.slow
def test_wheels_work_outside_the_repository(wheels, tmp_path):
    """The commands of docs/commands.md, at reduced size; dependencies are those of the tests."""
    python = tmp_path / "env" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "env"], check=True)
    install = ["-m", "pip", "install", "--quiet", "--no-index", "--no-deps", *map(str, wheels.values())]
    subprocess.run([python, *install], check=True)
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PATH": f"{python.parent}:{os.environ['PATH']}"}

    def run(*command: str) -> str:
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    modules = ", ".join(wheels)
    found = run(str(python), "-c", f"import {modules}\nfor m in ({modules}): print(m.__file__)")
    assert all(path.startswith(str(site)) for path in found.splitlines()), found
    for command in commands_of(ROOT / "docs" / "commands.md", tmp_path):
        name = command[0]
        if name not in COMMANDS:
            continue
        program = [name]
        if name.startswith("lerobot-"):  # installed in the environment of the tests only
            program = [str(python), "-m", f"lerobot.scripts.{name.replace('-', '_')}"]
        run(*program, *reduced(command)[1:])
    assert (tmp_path / "outputs" / "eval" / "eval_info.json").is_file()
    assert (tmp_path / "outputs" / "view.mp4").stat().st_size > 10_000
