# SPDX-License-Identifier: Apache-2.0
"""Bad options of commands end in one line that names the flag, with exit code 2, and ask no network."""

import re
import socket
import subprocess
import sys
from importlib import metadata

import pytest
import torch

from tests.tiny_dataset import tiny_dataset


@pytest.fixture
def fails(monkeypatch, capsys):
    """Run a command in this process and return its one-line error."""

    def refuse(*args, **kwargs):
        raise AssertionError("the network was asked")

    def run(name: str, *arguments: str) -> str:
        (script,) = metadata.entry_points(group="console_scripts", name=name)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        monkeypatch.setattr(socket.socket, "connect", refuse)
        with pytest.raises(SystemExit) as end:
            script.load()()
        assert end.value.code == 2
        error = capsys.readouterr().err.strip().splitlines()
        assert error[-1].startswith(f"{name}: "), error
        assert not any("Traceback" in line for line in error)
        return error[-1]

    return run


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return tiny_dataset(tmp_path_factory.mktemp("data") / "tiny", lengths=(3,))


def test_a_dataset_that_does_not_exist(fails, tmp_path):
    options = (f"--root={tmp_path}/typo", f"--output={tmp_path}/out.png", "--segmenter=workbench")
    for name in ("so101-view", "so101-precompute"):
        assert "--root: found no dataset in" in fails(name, *options)


def test_a_number_that_is_none(fails, tmp_path):
    assert "`height`: Couldn't parse 'abc' into an int" in fails(
        "so101-demos", f"--root={tmp_path}/d", "--height=abc"
    )


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_does_not_exist(fails, dataset, tmp_path):
    found = "--device: found 'cuda', which cannot be used here"
    options = (f"--root={dataset}", "--device=cuda")
    assert found in fails("so101-view", *options, f"--output={tmp_path}/out.png")
    assert found in fails("so101-precompute", *options, "--segmenter=workbench", f"--output={tmp_path}/out")


def test_a_segmenter_that_is_misspelled(fails, dataset, tmp_path):
    error = fails(
        "so101-precompute", f"--root={dataset}", "--segmenter=workbanch", f"--output={tmp_path}/out"
    )
    assert error.endswith("owner/name on the Hub. Did you mean 'workbench'?")


# Prints the help of all commands; in a process of its own, because help changes classes of options.
HELP = """
import sys
from importlib import metadata
for script in metadata.entry_points(group="console_scripts"):
    if script.value.startswith("lerobot_") and script.name.startswith(("so101-", "hlrp-")):
        sys.argv = [script.name, "--help"]
        print("== " + script.name)
        try:
            script.load()()
        except SystemExit as end:
            assert end.code == 0, script.name
"""


@pytest.mark.slow
def test_help_describes_every_flag():
    ran = subprocess.run([sys.executable, "-c", HELP], capture_output=True, text=True, check=True)
    commands = ran.stdout.split("== ")[1:]
    assert len(commands) > 15
    for text in commands:
        assert not re.search(r"\bdef |lambda|field\(|MISSING|<factory>|^ *(Args|Raises):", text, re.MULTILINE)
        flags = re.split(r"\n  (?=-)", text)[1:]  # each with its text
        described = [re.sub(r"\(default:.*", "", flag, flags=re.DOTALL).split(maxsplit=2) for flag in flags]
        assert all(len(words) == 3 for words in described), [words for words in described if len(words) < 3]
        names = [words[0] for words in described]
        assert len(set(names)) == len(names)
