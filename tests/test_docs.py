# SPDX-License-Identifier: Apache-2.0
"""Every command of the README, the pages and the packages' READMEs names commands and options that exist.

The blocks of a page run in bash, in their order, with stand-ins for all console commands that write down
their arguments. The real parser of each command then parses them. `make run-docs` executes them, and
`release/test_wheels.py` those of docs/commands.md outside the repository.
"""

import argparse
import functools
import json
import re
import subprocess
import sys
from pathlib import Path

import draccus
import pytest
import yaml
from lerobot.configs import PreTrainedConfig
from lerobot.utils.import_utils import register_third_party_plugins
from release.reduced_size import SERVERS, SIZE, SUBSTITUTES, reduced
from release.run_docs import COMMANDS, CONFIGURATIONS, PAGES, blocks, run_page, table

from tests.test_house import MEMBERS, PROJECTS, ROOT

OTHERS = ("pip", "make", "python", "accelerate", "sbatch", "source", "export")
STAND_IN = """#!{python}
import json, os, sys
with open({log!r}, "a") as file:
    file.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
if os.path.basename(sys.argv[0]) == "so101-config":
    print({configs!r} + "/" + sys.argv[1] + ".yaml")
"""


def commands_of(page: Path, folder: Path) -> list[list[str]]:
    """Run the blocks of a page with stand-ins in an empty folder, and return the commands that they run."""
    log, binaries, configs = folder / "log", folder / "bin", folder / "configs"
    binaries.mkdir()
    configs.mkdir()
    for path in CONFIGURATIONS:
        (configs / path.name).write_text(path.read_text())
    text = STAND_IN.format(python=sys.executable, log=str(log), configs=str(configs))
    slurm = [path.relative_to(ROOT) for path in (ROOT / "examples" / "slurm").glob("*.sh")]
    for path in (*(binaries / name for name in (*COMMANDS, *OTHERS)), *(folder / path for path in slurm)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    environment = {"PATH": f"{binaries}:/usr/bin:/bin", "HOME": str(folder)}
    script = ["bash", "-c", "set -eu\nsource() { :; }\n" + "\n".join(block.text for block in blocks(page))]
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


def with_checkpoints(command: list[str], page: Path, folder: Path) -> list[str]:
    """Replace the path of a policy by that of a checkpoint without weights."""
    arguments = []
    for argument in command:
        flag, _, value = argument.partition("=")
        if flag == "--policy.path":
            kind = kind_of(page, value)
            argument = f"{flag}={checkpoint(kind, folder / kind)}"
        arguments.append(argument)
    return arguments


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_parse(page, parse, tmp_path):
    register_third_party_plugins()
    for command in commands_of(page, tmp_path):
        if command[0] not in COMMANDS:
            continue
        try:
            parse(with_checkpoints(command, page, tmp_path))
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
    assert all(yaml.safe_load(path.read_text()) for path in CONFIGURATIONS)
    page = (ROOT / "docs" / "configuration.md").read_text()
    assert [path.name for path in CONFIGURATIONS if f"`{path.stem}`" not in page] == []
    for path in CONFIGURATIONS:
        (block,) = blocks(path)
        assert f"$(so101-config {path.stem})" in block.text, path.name


def test_sizes_are_those_of_commands_in_the_pages():
    text = "\n".join(block.text for page in (*PAGES, *CONFIGURATIONS) for block in blocks(page))
    for key in (*SIZE, *SERVERS):
        assert all(word in text for word in key.split()), key
    assert [found for found in SUBSTITUTES if found not in text] == []


@pytest.mark.parametrize("key", [key for key in SIZE if key.partition(" ")[0] in COMMANDS])
def test_sizes_are_options(key, parse, tmp_path):
    """The first command of the pages that has this size is parsed with it."""
    register_third_party_plugins()
    for page in PAGES:
        text = "".join(block.text for block in blocks(page))
        folder = tmp_path / str(PAGES.index(page))
        folder.mkdir()
        for command in commands_of(page, folder) if all(word in text for word in key.split()) else ():
            if command[0] == key.partition(" ")[0] and set(SIZE[key]) <= set(reduced(command)):
                parse(with_checkpoints(reduced(command), page, tmp_path))
                return
    pytest.fail(f"no page has {key}")


@pytest.mark.parametrize("module", [key for key in SIZE if key.startswith(("benchmarks.", "examples."))])
def test_sizes_of_modules_are_options(module):
    source = (ROOT / f"{module.replace('.', '/')}.py").read_text()
    for option in SIZE[module]:
        assert re.search(rf"\b{option[2:].partition('=')[0]}\b", source), option


# --- execution ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("page", [*PAGES, *CONFIGURATIONS], ids=lambda page: str(page.relative_to(ROOT)))
def test_blocks_that_are_not_executed_have_a_reason(page):
    excuses = [block.excuse for block in blocks(page) if block.excuse is not None]
    assert all(excuses)
    markers = re.findall(r"^ *(?:<!--|#) not executed", page.read_text(), re.M)
    assert len(excuses) == len(markers), "a marker is not on the line before a block"
    if page in PAGES:
        assert len(blocks(page)) == len(re.findall(r"^ *```bash", page.read_text(), re.M))


SAMPLE = """
```bash
CONFIG=$(so101-config segdepth_lift_cube)
```

<!-- not executed: needs the arm -->
```bash
so101-doctor --port=/dev/nowhere
```

```bash
cat missing.yaml
```

```bash
grep segdepth $CONFIG
```
"""


def test_a_page_runs_at_reduced_size(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(SAMPLE)
    report = run_page(page, tmp_path / "hub")
    assert (report.executed, report.excused) == (2, ["needs the arm"])
    (failed,) = report.failed
    assert f"{page.name}:12: exit code 1" in failed
    assert "missing.yaml" in failed
    assert table([report]).splitlines()[-1].split()[:5] == ["all", "4", "2", "1", "1"]
