# SPDX-License-Identifier: Apache-2.0
"""`so101-config`: configurations by name, all of which LeRobot's commands can read."""

import sys

import draccus
import pytest
from lerobot.configs.train import TrainPipelineConfig
from lerobot.utils.import_utils import register_third_party_plugins

from lerobot_processor_so101.find_config import find_configs, main

OTHERS = {"accelerate_fsdp", "hlrp_mixture"}  # of `accelerate launch` and `hlrp-mix`


@pytest.mark.parametrize("name", sorted(find_configs().keys() - OTHERS))
def test_lerobot_reads_every_configuration(name):
    register_third_party_plugins()
    config = draccus.parse(TrainPipelineConfig, find_configs()[name], args=[])
    assert name.startswith(config.policy.type.removesuffix("_laq"))


@pytest.mark.parametrize(("arguments", "end"), [(["imf_views96"], ".yaml\n"), ([], "\n")])
def test_prints_a_path_or_all_names(arguments, end, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["so101-config", *arguments])
    main()
    assert f"imf_views96{end}" in capsys.readouterr().out


def test_an_unknown_name_is_refused_with_the_nearest(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["so101-config", "imf_views97"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "Did you mean 'imf_views96'?" in capsys.readouterr().err
