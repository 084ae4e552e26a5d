# SPDX-License-Identifier: Apache-2.0
"""How the repository is laid out: names LeRobot finds, light imports, import directions, files in order."""

import ast
import functools
import json
import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata, util
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
WORKSPACE = tomllib.loads((ROOT / "pyproject.toml").read_text())
FOLDERS = WORKSPACE["tool"]["uv"]["workspace"]["members"]
PROJECTS = {folder: tomllib.loads((ROOT / folder / "pyproject.toml").read_text()) for folder in FOLDERS}
MEMBERS = {project["project"]["name"]: ROOT / folder for folder, project in PROJECTS.items()}

SHARED = "lerobot_processor_so101"
PREFIXES = ("lerobot_robot_", "lerobot_camera_", "lerobot_teleoperator_", "lerobot_policy_", "lerobot_env_")
PLUGINS = sorted(set(MEMBERS) - {SHARED})


@functools.cache
def repo_files() -> list[Path]:
    """The files that git tracks or would add, or without git all but the usual leftovers."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):
        listed = []
    if any(listed):
        return sorted(ROOT / name for name in set(listed) if name and (ROOT / name).is_file())
    skipped = {"outputs", "build", "dist", "__pycache__"}
    found = []
    for folder, subfolders, names in os.walk(ROOT):
        subfolders[:] = [
            name
            for name in subfolders
            if name not in skipped
            and not name.endswith(".egg-info")
            and (not name.startswith(".") or name == ".ci")
        ]
        found += [Path(folder) / name for name in names if name != "uv.lock"]
    return sorted(found)


def repo_texts() -> dict[str, str]:
    texts = {}
    for path in repo_files():
        try:
            texts[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue  # a binary file
    return texts


def sources(member: str) -> list[Path]:
    return sorted((MEMBERS[member] / "src").rglob("*.py"))


def imported_modules(source: str) -> set[str]:
    """Top-level packages that a file imports anywhere; relative imports do not count."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            names.add(node.module)
        elif (
            isinstance(node, ast.Call)
            and (getattr(node.func, "attr", None) or getattr(node.func, "id", None))
            in ("import_module", "__import__")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            names.add(str(node.args[0].value))
    return {name.partition(".")[0] for name in names}


# --- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("member", sorted(MEMBERS))
def test_the_installed_name_is_the_module_name(member):
    # LeRobot imports the distribution's Name as it stands in the metadata, so "-" for "_" would hide a
    # plugin.
    assert metadata.metadata(member)["Name"] == member
    spec = util.find_spec(member)
    assert spec is not None
    assert Path(spec.origin).resolve() == MEMBERS[member] / "src" / member / "__init__.py"


@pytest.mark.parametrize("member", sorted(MEMBERS))
def test_one_top_level_package_each(member):
    packages = [path.name for path in (MEMBERS[member] / "src").iterdir() if (path / "__init__.py").is_file()]
    assert packages == [member]


@pytest.mark.parametrize("member", PLUGINS)
def test_plugin_names_begin_as_lerobot_expects(member):
    assert member.startswith(PREFIXES)


def test_every_project_is_a_member():
    projects = {path.parent for path in repo_files() if path.name == "pyproject.toml"}
    assert projects == {ROOT, *MEMBERS.values()}


def test_the_workspace_tables_list_every_member():
    tools = WORKSPACE["tool"]
    assert set(WORKSPACE["project"]["dependencies"]) == set(MEMBERS)
    assert set(tools["uv"]["sources"]) == set(MEMBERS)
    assert set(tools["ruff"]["lint"]["isort"]["known-first-party"]) == {*MEMBERS, "tests"}
    assert tools["mypy"]["files"] == [f"{folder}/src" for folder in FOLDERS]
    assert tools["mypy"]["mypy_path"] == ":".join(tools["mypy"]["files"])


# --- imports -----------------------------------------------------------------------------------------------

# A fresh process imports LeRobot; then one copy of it imports the members, the shared package first, so that
# each answers for what it adds itself, and another looks for plugins as LeRobot does.
PROBES = """
import importlib, json, os, sys
import lerobot.configs, lerobot.envs.configs, lerobot.processor, lerobot.robots, lerobot.teleoperators
from lerobot.utils.import_utils import register_third_party_plugins

if child := os.fork():
    assert os.waitpid(child, 0)[1] == 0
    register_third_party_plugins()
    print(json.dumps(sorted(set(sys.argv[1:]) & set(sys.modules))))
else:
    added = {}
    for name in sys.argv[1:]:
        before = set(sys.modules)
        importlib.import_module(name)
        added[name] = sorted(set(sys.modules) - before)
    print(json.dumps(added))
"""


@pytest.fixture(scope="module")
def probes():
    """The modules that each member adds to LeRobot's, and the plugins that LeRobot finds."""
    run = subprocess.run(
        [sys.executable, "-c", PROBES, SHARED, *PLUGINS],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    assert run.returncode == 0, run.stderr
    added, found = map(json.loads, run.stdout.splitlines()[-2:])
    return {"added": added, "found": found}


@pytest.mark.parametrize("member", sorted(MEMBERS))
def test_importing_a_member_is_light(probes, member):
    added = probes["added"][member]
    heavy = [name for name in added if name in ("mujoco", "transformers")]
    models = [name for name in added if re.match(rf"{member}\.(.*\.)?modeling", name)]
    assert not heavy + models


def test_lerobot_discovers_every_plugin(probes):
    assert set(PLUGINS) <= set(probes["found"])


@pytest.mark.parametrize("member", sorted(MEMBERS))
def test_members_import_themselves_and_the_shared_package_only(member):
    others = set(MEMBERS) - {member, SHARED}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in sources(member)
        for name in sorted(imported_modules(path.read_text(encoding="utf-8")) & others)
    ]
    assert not wrong


@pytest.mark.parametrize("folder", FOLDERS)
def test_members_depend_on_the_shared_package_only(folder):
    project = PROJECTS[folder]["project"]
    requirements = project.get("dependencies", [])
    requirements += [line for extra in project.get("optional-dependencies", {}).values() for line in extra]
    names = {re.match(r"[\w.-]+", line)[0].replace("-", "_") for line in requirements}
    assert names & set(MEMBERS) <= {SHARED} - {project["name"]}


def test_imported_modules_sees_every_form():
    inner = "def f():\n    from c.d import e\n    import_module('g.h')\n"
    source = f"import a.b\n{inner}from . import i\nfrom .j import k"
    assert imported_modules(source) == {"a", "c", "g"}


# --- files -------------------------------------------------------------------------------------------------


def test_sources_name_their_licence():
    trees = (*FOLDERS, "tests", "benchmarks", "examples", "release")
    missing = []
    for path in repo_files():
        name = path.relative_to(ROOT)
        if path.suffix != ".py" or name.parts[0] not in trees:
            continue
        lines = path.read_text(encoding="utf-8").splitlines()
        if lines and lines[0].startswith("#!"):
            lines = lines[1:]
        if lines[:1] != ["# SPDX-License-Identifier: Apache-2.0"]:
            missing.append(name.as_posix())
    assert not missing


def test_constraints_are_versions_and_nothing_else():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert lines
    assert [line for line in lines if not re.fullmatch(r"[a-z0-9-]+==[\w.]+( ; [^/@]+)?", line)] == []
    pinned = {line.partition("==")[0].replace("-", "_") for line in lines}
    assert not pinned & set(MEMBERS)


def test_versions_agree():
    versions = {project["project"]["version"] for project in (*PROJECTS.values(), WORKSPACE)}
    assert len(versions) == 1
    version = versions.pop()
    assert f"\n## {version}" in (ROOT / "CHANGELOG.md").read_text()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()


def test_no_lock_file():
    assert [path for path in repo_files() if path.name == "uv.lock"] == []


def test_no_file_names_a_package_registry():
    # Written in pieces, or this file would name them.
    hosts = ("pypi org", "pythonhosted org", "download pytorch org", "anaconda org", "npmjs org", "npmjs com")
    options = ("index url", "find links")
    words = [host.replace(" ", ".") for host in hosts] + [option.replace(" ", "-") for option in options]
    wrong = [f"{name} names {word}" for name, text in repo_texts().items() for word in words if word in text]
    assert not wrong
