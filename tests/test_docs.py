# SPDX-License-Identifier: Apache-2.0
"""Every command of the README, the pages and the packages' READMEs names commands and options that exist.

The blocks of a page run in bash, in their order, with stand-ins for all console commands that write down
their arguments. The real parser of each command then parses them. `release/test_wheels.py` runs those of
docs/commands.md.
"""

import argparse
import functools
import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import draccus
import pytest
import yaml
from lerobot.configs import PreTrainedConfig
from lerobot.utils.import_utils import register_third_party_plugins

from tests.test_house import MEMBERS, PROJECTS, ROOT

PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *(folder / "README.md" for folder in MEMBERS.values()),
]
COMMANDS = {
    point.name: point
    for point in metadata.entry_points(group="console_scripts")
    if point.name.startswith(("so101-", "lerobot-", "hlrp-"))
}
OTHERS = ("pip", "make", "python", "accelerate", "sbatch", "source", "export")
STAND_IN = """#!{python}
import json, os, sys
with open({log!r}, "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
if os.path.basename(sys.argv[0]) == "so101-config":
    print({configs!r} + "/" + sys.argv[1] + ".yaml")
"""


def blocks(page: Path) -> list[str]:
    return re.findall(r"^```bash\n(.*?)^```", page.read_text(), re.M | re.S)


def commands_of(page: Path, folder: Path) -> list[list[str]]:
    """Run the blocks of a page with stand-ins in an empty folder, and return the commands that they run."""
    log, binaries, configs = folder / "log", folder / "bin", folder / "configs"
    binaries.mkdir()
    configs.mkdir()
    for path in ROOT.glob("*/src/*/configs/*.yaml"):
        (configs / path.name).write_text(path.read_text())
    text = STAND_IN.format(python=sys.executable, log=str(log), configs=str(configs))
    slurm = [path.relative_to(ROOT) for path in (ROOT / "examples" / "slurm").glob("*.sh")]
    for path in (*(binaries / name for name in (*COMMANDS, *OTHERS)), *(folder / path for path in slurm)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    environment = {"PATH": f"{binaries}:/usr/bin:/bin", "HOME": str(folder)}
    script = ["bash", "-c", "set -eu\nsource() { :; }\n" + "\n".join(blocks(page))]
    ended = subprocess.run(script, cwd=folder, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


class Parsed(BaseException):
    """A command has parsed its arguments."""


@pytest.fixture
def parse(monkeypatch, tmp_path):
    """Lets a command's real parser parse its arguments, and nothing more."""
    depth = 0

    def parser(original):
        @functools.wraps(original)
        def outermost(*args, **kwargs):
            nonlocal depth
            depth += 1
            try:
                result = original(*args, **kwargs)
            finally:
                depth -= 1
            if depth == 0:
                raise Parsed
            return result

        return outermost

    for module in (draccus, draccus.argparsing):  # of the commands that use `draccus.wrap`, the second
        monkeypatch.setattr(module, "parse", parser(module.parse))
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parser(argparse.ArgumentParser.parse_args))

    def run(command: list[str]) -> None:
        monkeypatch.setattr(sys, "argv", command)
        with pytest.raises(Parsed):
            COMMANDS[command[0]].load()()

    return run


def checkpoint(kind: str, folder: Path) -> Path:
    """A checkpoint without weights."""
    if not folder.exists():
        folder.mkdir()
        PreTrainedConfig.get_choice_class(kind)(device="cpu").save_pretrained(folder)
    return folder


def kind_of(page: Path, path: str) -> str:
    """The type of the policy in a path of a page."""
    names = f"{path} {page} "
    return next(
        kind for kind in ("smolvla", "segvla", "imf", "hlrp", "act", "segdepth") if kind in names + "segdepth"
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page, parse, tmp_path):
    register_third_party_plugins()
    for command in commands_of(page, tmp_path):
        if command[0] not in COMMANDS:
            continue
        arguments = []
        for argument in command:
            flag, _, value = argument.partition("=")
            if flag == "--policy.path":
                kind = kind_of(page, value)
                argument = f"{flag}={checkpoint(kind, tmp_path / kind)}"
            arguments.append(argument)
        try:
            parse(arguments)
        except SystemExit as error:
            pytest.fail(f"{' '.join(command)}: exit code {error.code}")


@pytest.mark.parametrize("command", ["so101-demos --episode=3", "lerobot-train --policy.type=segdepht"])
def test_a_wrong_option_is_found(command, parse):
    with pytest.raises(SystemExit):
        parse(command.split())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_packages_that_need_each_other_are_installed_together(page, tmp_path):
    """None of them is in a package index, so pip must be given all that a package depends on."""
    folders = {folder: project["project"]["name"] for folder, project in PROJECTS.items()}
    for command in commands_of(page, tmp_path):
        if command[0] != "pip":
            continue
        given = {folders[name.partition("[")[0]] for name in command if name.partition("[")[0] in folders}
        needed = {
            re.split(r"[\[><= ]", dependency)[0]
            for folder, name in folders.items()
            if name in given
            for dependency in PROJECTS[folder]["project"]["dependencies"]
        }
        assert needed & set(MEMBERS) <= given


def test_configurations_are_complete():
    paths = list(ROOT.glob("*/src/*/configs/*.yaml"))
    assert all(yaml.safe_load(path.read_text()) for path in paths)
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert [path.name for path in paths if f"`{path.stem}`" not in page] == []
