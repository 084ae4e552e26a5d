# SPDX-License-Identifier: Apache-2.0
"""LeRobot's notice about torchcodec takes one line, once."""

import logging

import pytest
from lerobot.utils.import_utils import get_safe_default_video_backend

from lerobot_processor_so101.log_filter import TorchcodecFilter


def fails(name):
    raise RuntimeError("Could not load libtorchcodec.\n" + 100 * "traceback\n")


@pytest.fixture
def logger(caplog):
    # Commands of other tests leave a higher level.
    caplog.set_level(logging.WARNING, "lerobot.utils.import_utils")
    logger = logging.getLogger("lerobot.utils.import_utils")
    before = logger.filters[:]
    logger.filters[:] = [TorchcodecFilter()]
    yield logger
    logger.filters[:] = before


def test_the_notice_is_one_line_and_logged_once(logger, monkeypatch, caplog):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    monkeypatch.setattr("importlib.import_module", fails)
    assert [get_safe_default_video_backend() for _ in range(2)] == ["pyav", "pyav"]
    (record,) = caplog.records
    assert "FFmpeg" in record.getMessage()
    assert "\n" not in record.getMessage()


def test_other_messages_pass(logger, caplog):
    logger.warning("another %s", "message")
    assert [record.getMessage() for record in caplog.records] == ["another message"]
