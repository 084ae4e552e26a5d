# SPDX-License-Identifier: Apache-2.0
"""`so101-benchmark`: one evaluation per task and level, a table, and what it refuses."""

import json
from pathlib import Path

import pytest
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies.act.configuration_act import ACTConfig
from safetensors.torch import load_file

from lerobot_env_so101_workbench import benchmark as module
from lerobot_env_so101_workbench.benchmark import BenchmarkConfig, benchmark
from lerobot_env_so101_workbench.demos.takeovers import PolicyOptions
from lerobot_env_so101_workbench.policy_check import needed_images
from tests.tiny import tiny_act


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A tiny ACT with random weights, saved as LeRobot saves it."""
    config = tiny_act(tmp_path_factory.mktemp("act"), (32, 48), ("top",), chunk=4)
    return config.pretrained_path


@pytest.fixture
def run(checkpoint, tmp_path):
    def with_options(**options) -> str:
        config = BenchmarkConfig(root=tmp_path / "out", policy=PolicyOptions(path=checkpoint), **options)
        return benchmark(config)

    return with_options


@pytest.fixture
def commands(monkeypatch):
    """The evaluations that are asked for; each "succeeds" at every second initial state."""
    asked = []

    def evaluate(jobs):
        (job,) = jobs
        asked.append(dict(option[2:].split("=", 1) for option in job.command[1:]))
        out = asked[-1]["output_dir"]
        n = int(asked[-1]["eval.n_episodes"])
        group = f"{asked[-1]['env.task']}-{asked[-1]['env.level']}"
        metrics = {"successes": [index % 2 == 0 for index in range(n)]}
        (folder := module.Path(out)).mkdir()
        (folder / "eval_info.json").write_text(
            json.dumps({"per_task": [{"task_group": group, "metrics": metrics}]})
        )

    monkeypatch.setattr(module, "run_jobs", evaluate)
    return asked


def test_each_task_and_level_is_evaluated_once_with_the_images_of_the_training(run, commands, tmp_path):
    text = run(tasks=["lift_cube", "sort_cubes"], levels=["clean"], episodes=4, name="mine")
    assert [(c["env.task"], c["env.level"]) for c in commands] == [
        ("lift_cube", "clean"),
        ("sort_cubes", "clean"),
    ]
    assert (commands[0]["env.cameras"], commands[0]["env.height"], commands[0]["env.width"]) == (
        '["top"]',
        "32",
        "48",
    )
    assert (commands[0]["env.seg"], commands[0]["env.starts"], commands[0]["seed"]) == (
        "false",
        "eval",
        "1000",
    )
    assert "mine" in text
    assert "50.0 % (2/4" in text
    row = json.loads((tmp_path / "out" / "benchmark.json").read_text())
    assert row["success"] == {"lift_cube-clean": "1010", "sort_cubes-clean": "1010"}


def test_a_finished_evaluation_is_not_repeated_and_a_cut_one_is(run, commands, tmp_path):
    run(tasks=["lift_cube"], levels=["clean"], episodes=4)
    (tmp_path / "out" / "lift_cube_distractors").mkdir()  # killed before its end
    text = run(tasks=["lift_cube"], levels=["clean", "distractors"], episodes=4)
    assert [c["env.level"] for c in commands] == ["clean", "distractors"]
    assert text.count("50.0 %") == 2


def test_parameters_are_counted(run, commands, checkpoint, tmp_path):
    run(tasks=["lift_cube"], levels=["clean"], episodes=1)
    expected = sum(value.numel() for value in load_file(f"{checkpoint}/model.safetensors").values())
    assert json.loads((tmp_path / "out" / "benchmark.json").read_text())["parameters"] == expected


def test_a_folder_of_another_run_is_refused(run, commands):
    run(tasks=["lift_cube"], levels=["clean"], episodes=4)
    with pytest.raises(ValueError, match=r"--root: .*episodes 4, the command has 5"):
        run(tasks=["lift_cube"], levels=["clean"], episodes=5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tasks": ["lift_cub"]}, "--tasks: .*Did you mean 'lift_cube'"),
        ({"levels": ["easy"]}, "--levels: found level 'easy'"),
        ({"episodes": 201}, "--episodes: found 201"),
        ({"starts": "train_"}, "--starts"),
    ],
)
def test_wrong_options_are_named(run, options, message):
    with pytest.raises(ValueError, match=message):
        run(**options)


def test_a_policy_is_necessary(tmp_path):
    with pytest.raises(ValueError, match=r"--policy\.path: found none"):
        benchmark(BenchmarkConfig(root=tmp_path))


def images(**shapes):
    return ACTConfig(
        input_features={
            f"observation.images.{name}": PolicyFeature(FeatureType.VISUAL, shape)
            for name, shape in shapes.items()
        }
    )


def test_the_images_of_the_training_are_rendered():
    setup = needed_images(images(top_seg=(1, 60, 80), wrist_depth=(1, 60, 80)), Path())
    assert (setup.cameras, setup.height, setup.width) == (("top", "wrist"), 60, 80)
    assert (setup.rgb, setup.seg, setup.depth) == (False, True, True)
    assert needed_images(images(), Path()).shapes() == {}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"top": (3, 60, 80), "wrist": (3, 32, 32)}, "several sizes"),
        ({"laptop": (3, 60, 80)}, r"--policy\.path: .*camera 'laptop'"),
    ],
)
def test_other_cameras_are_refused(shapes, message):
    with pytest.raises(ValueError, match=message):
        needed_images(images(**shapes), Path())


@pytest.mark.slow
def test_lerobot_evaluates_the_policy(run, tmp_path):
    text = run(tasks=["lift_cube"], levels=["clean"], episodes=1)
    assert "0.0 % (0/1" in text
    assert (tmp_path / "out" / "benchmark.md").read_text().strip() in text
