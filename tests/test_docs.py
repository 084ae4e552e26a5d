# SPDX-License-Identifier: Apache-2.0
"""Every command of the README, the pages and the packages' READMEs names commands and options that exist.

The blocks of a page run in bash, in their order, with stand-ins for all console commands that write down
their arguments. The real parser of each command then parses them.
"""

import argparse
import functools
import json
import os
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
SMALL = {
    "so101-demos": {"--episodes": "2"},
    "lerobot-record": {"--dataset.num_episodes": "1", "--dataset.reset_time_s": "1"},
    "lerobot-train": {"--steps": "2", "--batch_size": "2", "--num_workers": "0"},
    "lerobot-eval": {"--eval.n_episodes": "1"},
    "lerobot-rollout": {"--duration": "2"},
    "lerobot-teleoperate": {"--teleop_time_s": "2"},
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


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """All configurations in one folder."""
    folder = tmp_path_factory.mktemp("configs")
    for path in ROOT.glob("*/src/*/configs/*.yaml"):
        (folder / path.name).write_text(path.read_text())
    return folder


@pytest.fixture
def written(configs, tmp_path):
    """Runs the blocks of a page, and returns the commands that they run."""

    def run(page: Path) -> list[list[str]]:
        log, folder = tmp_path / "log", tmp_path / "bin"
        folder.mkdir()
        text = STAND_IN.format(python=sys.executable, log=str(log), configs=str(configs))
        for name in (*COMMANDS, *OTHERS):
            (folder / name).write_text(text)
            (folder / name).chmod(0o755)
        for script in (ROOT / "examples" / "slurm").glob("*.sh"):
            copy = tmp_path / script.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(text)
            copy.chmod(0o755)
        environment = {"PATH": f"{folder}:/usr/bin:/bin", "HOME": str(tmp_path)}
        script = "set -eu\nsource() { :; }\n" + "\n".join(blocks(page))
        ended = subprocess.run(
            ["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert ended.returncode == 0, ended.stderr
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    return run


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
def test_commands_parse(page, written, parse, tmp_path):
    register_third_party_plugins()
    for command in written(page):
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


@pytest.mark.slow
def test_the_commands_of_the_readme_run(written, tmp_path):
    """At reduced size, in an empty folder, in their order."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    for name, *arguments in written(ROOT / "README.md"):
        if name not in COMMANDS:
            continue
        options = dict(argument.split("=", 1) for argument in arguments) | SMALL.get(name, {})
        command = [Path(sys.executable).parent / name, *(f"{k}={v}" for k, v in options.items())]
        ended = subprocess.run(
            command, cwd=tmp_path, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert ended.returncode == 0, f"{name}: {ended.stderr[-3000:]}"
    assert (tmp_path / "outputs" / "eval" / "eval_info.json").is_file()
    assert (tmp_path / "outputs" / "view.mp4").stat().st_size > 10_000


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_packages_that_need_each_other_are_installed_together(page, written):
    """None of them is in a package index, so pip must be given all that a package depends on."""
    folders = {folder: project["project"]["name"] for folder, project in PROJECTS.items()}
    for command in written(page):
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
    assert all(yaml.safe_load(path.read_text()) for path in ROOT.glob("*/src/*/configs/*.yaml"))
