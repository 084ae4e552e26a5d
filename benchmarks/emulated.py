# SPDX-License-Identifier: Apache-2.0
"""What benchmarks on the emulated arm share: its robot's configuration, and a policy that moves it."""

from pathlib import Path
from typing import Any

from lerobot.configs import FeatureType, PolicyFeature
from lerobot.policies import make_pre_post_processors
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.act.modeling_act import ACTPolicy
from lerobot.robots.so_follower import SO101Follower, SO101FollowerConfig

from lerobot_env_so101_workbench import SO101VirtualCameraConfig
from lerobot_env_so101_workbench.virtual_arm import VirtualArm
from lerobot_robot_so101 import SO101GuardedConfig

SIZE = {"height": 24, "width": 32, "fps": 30}


def robot_class(robot: str) -> Any:
    """The class behind `--robot.type`."""
    if robot == "so101_follower":
        return SO101Follower
    from lerobot_robot_so101.so101_guarded import SO101Guarded

    return SO101Guarded


def robot_config(robot: str, arm: VirtualArm) -> Any:
    """The robot on the port of the arm, with its cameras."""
    port = arm.config.follower_port
    size = {"height": arm.config.height, "width": arm.config.width, "fps": arm.config.camera_fps}
    cameras = {view: SO101VirtualCameraConfig(view=view, port=port, **size) for view in arm.config.cameras}
    made = SO101FollowerConfig if robot == "so101_follower" else SO101GuardedConfig
    return made(port=str(port), id=arm.config.id, cameras=cameras)


def act_config(folder: Path, size: dict[str, int] = SIZE) -> ACTConfig:
    """LeRobot's ACT, small and untrained, saved in a folder: it asks for joints near 0, far from where the arm is."""
    picture = PolicyFeature(FeatureType.VISUAL, (3, size["height"], size["width"]))
    config = ACTConfig(
        input_features={
            "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
            "observation.images.top": picture,
            "observation.images.wrist": picture,
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (6,))},
        pretrained_backbone_weights=None,
        chunk_size=15,
        n_action_steps=15,
        dim_model=16,
        n_heads=2,
        dim_feedforward=16,
        n_encoder_layers=1,
        use_vae=False,
        device="cpu",
        push_to_hub=False,
    )
    ACTPolicy(config).save_pretrained(folder)
    for pipeline in make_pre_post_processors(config):
        pipeline.save_pretrained(folder)
    config.pretrained_path = folder
    return config
