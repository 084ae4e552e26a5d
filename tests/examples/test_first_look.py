# SPDX-License-Identifier: Apache-2.0
"""The notebook: its cells run one after the other, at reduced size."""

import ast
import json
import tempfile

import numpy as np
import pytest

from tests.test_house import ROOT

NOTEBOOK = ROOT / "examples" / "first_look.ipynb"
REDUCED = {"EPISODES, SIDE = 30, 84": "EPISODES, SIDE = 2, 24", "STEPS = 500": "STEPS = 3"}


def run_cell(code: str, names: dict) -> object:
    """Run a cell, and return the value of the expression at its end as a notebook does."""
    tree = ast.parse(code)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, str(NOTEBOOK), "exec"), names)
    return eval(compile(ast.Expression(last.value), str(NOTEBOOK), "eval"), names) if last else None


@pytest.mark.slow
def test_first_look(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert len(cells) <= 10
    codes = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert not any(cell.get("outputs") for cell in cells)
    for full, reduced in REDUCED.items():
        assert any(full in code for code in codes)
        codes = [code.replace(full, reduced) for code in codes]
    names: dict = {}
    values = [run_cell(code, names) for code in codes]
    sizes = [np.shape(value) for value in values if value is not None]
    assert sizes == [(360, 540, 3), (480, 960, 3), (360, 1440, 3)]  # scene, perception, rollout
    assert "2 episodes" in capsys.readouterr().out
    assert names["info"]["progress"] >= 0
