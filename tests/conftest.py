# SPDX-License-Identifier: Apache-2.0
"""Settings every test runs under: offline, out of the user's folders, on one thread."""

import functools
import logging
import multiprocessing
import os
import signal
import socket
import subprocess
import tempfile
import time

# Before anything imports LeRobot or huggingface_hub: both read these once, at import.
_home = tempfile.TemporaryDirectory(prefix="so101-tests-")
for _name in ("HF_HUB_CACHE", "HF_DATASETS_CACHE", "HF_LEROBOT_CALIBRATION"):
    os.environ.pop(_name, None)  # a test must never reach the user's caches or calibration files
os.environ.update(
    HF_HOME=os.path.join(_home.name, "hf"),
    HF_LEROBOT_HOME=os.path.join(_home.name, "lerobot"),
    HF_HUB_OFFLINE="1",
    WANDB_MODE="disabled",
    TOKENIZERS_PARALLELISM="false",
    SO101_ONNX_RUNTIME="0",  # exporting a segmenter takes longer than most tests
    # of commands that tests start, too: tiny models take ten times as long on two that share a core
    OMP_NUM_THREADS="1",
)

import draccus.wrappers.docstring  # noqa: E402
import pytest  # noqa: E402

# draccus reads the sources of all config classes again at every parse, 2.5 s each time; LeRobot's own tests
# remember the answers in the same way.
draccus.wrappers.docstring.get_attribute_docstring = functools.cache(
    draccus.wrappers.docstring.get_attribute_docstring
)


@pytest.fixture(autouse=True)
def root_log_level() -> None:
    """LeRobot's commands set up logging for the whole process; no other test is to see their messages."""
    logging.getLogger().setLevel(logging.WARNING)


@pytest.fixture(autouse=True)
def signal_handlers():
    """Ctrl-C interrupts, also where the tests run in the background; LeRobot's commands replace handlers."""
    default = {
        signal.SIGINT: signal.default_int_handler,
        signal.SIGTERM: signal.SIG_DFL,
        signal.SIGHUP: signal.SIG_DFL,
    }
    before = {signum: signal.signal(signum, handler) for signum, handler in default.items()}
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def small_disk(tmp_path):
    """Mount a file system of 2 MB, to be filled."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "none", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def own_elsewhere():
    """Return a function that lets another process own a path, and returns that process."""
    # a fork, which imports nothing: a process that does takes as long as ten tests
    context = multiprocessing.get_context("fork")
    owners: list[multiprocessing.process.BaseProcess] = []

    def own(path) -> multiprocessing.process.BaseProcess:
        ready = context.Event()
        owners.append(context.Process(target=_own, args=(path, ready), daemon=True))
        owners[-1].start()
        assert ready.wait(60)
        return owners[-1]

    yield own
    for owner in owners:
        owner.kill()
        owner.join()


def _own(path, ready) -> None:
    from lerobot_processor_so101.lock import owning

    with owning(path):
        ready.set()
        time.sleep(600)


@pytest.fixture
def free_port() -> int:
    """A port of this machine that no process uses."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture(scope="session")
def plugins() -> None:
    """What LeRobot's commands do first: find the installed plugins and import them."""
    from lerobot.utils.import_utils import register_third_party_plugins

    register_third_party_plugins()


def count_pictures(monkeypatch, model: type) -> list[int]:
    """Number of images in each call of a model's `forward` from now on."""
    seen, forward = [], model.forward

    def counting(self, pixel_values, *args, **kwargs):
        seen.append(len(pixel_values))
        return forward(self, pixel_values, *args, **kwargs)

    monkeypatch.setattr(model, "forward", counting)
    return seen
