# SPDX-License-Identifier: Apache-2.0
"""Benchmarks and examples stand on the packages alone, and every benchmark can be imported."""

import ast
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = sorted(ROOT.glob("benchmarks/**/*.py"))
OUTSIDE_TESTS = [path for path in ROOT.glob("tests/**/*.py") if path.parent.name != "benchmarks"]


def imported(path):
    """Names of the top-level packages that a file imports, itself left out."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module.partition(".")[0]


@pytest.mark.parametrize(
    ("paths", "forbidden"),
    [
        (BENCHMARKS, {"tests", "examples"}),
        (sorted(ROOT.glob("examples/**/*.py")), {"tests", "benchmarks"}),
        (OUTSIDE_TESTS, {"benchmarks"}),
    ],
    ids=["benchmarks", "examples", "tests"],
)
def test_imports_run_down(paths, forbidden):
    found = {(str(path.relative_to(ROOT)), name) for path in paths for name in imported(path)}
    assert not {pair for pair in found if pair[1] in forbidden}


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_can_be_imported(path):
    importlib.import_module(".".join(path.relative_to(ROOT).with_suffix("").parts))


def test_no_folder_has_more_than_13_modules():
    for folder in {path.parent for path in BENCHMARKS}:
        assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= 13
