# SPDX-License-Identifier: Apache-2.0
"""Run a trained policy on one observation of the workbench, and print the action.

Works for every policy type whose inputs the workbench has: give the size of the images it was trained on.

    python -m examples.run_policy --checkpoint=outputs/demo/train/checkpoints/last/pretrained_model
"""

import argparse
from pathlib import Path

import torch

from lerobot_env_so101_workbench import CameraSetup
from lerobot_env_so101_workbench.env import WorkbenchEnv
from lerobot_processor_so101.arm import JOINTS
from lerobot_processor_so101.policy.trained_policy import batch_of_one, load_policy


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True, help="a `pretrained_model` folder")
    parser.add_argument("--task", default="lift_cube")
    parser.add_argument("--height", type=int, default=84, help="of the images")
    parser.add_argument("--width", type=int, default=84)
    options = parser.parse_args()

    # 1. the policy, with the pipelines of its checkpoint
    policy, preprocessor, postprocessor = load_policy(options.checkpoint)
    policy.reset()

    # 2. an observation of the first evaluation state: joints, RGB, class ids and depth
    cameras = CameraSetup(("top", "wrist"), options.height, options.width, rgb=True, seg=True, depth=True)
    env = WorkbenchEnv(options.task, cameras=cameras)
    observation, _ = env.reset(seed=1000)
    batch = batch_of_one(observation) | {"task": [env.task_description]}

    # 3. observation -> action
    with torch.no_grad():
        action = postprocessor(policy.select_action(preprocessor(batch)))[0]  # (6,)
    print(f"{policy.config.type}: {env.task_description}")
    print(f"{'joint':<15}{'present':>9}{'action':>9}")
    for joint, present, goal in zip(JOINTS, observation["agent_pos"], action.tolist(), strict=True):
        print(f"{joint:<15}{present:9.1f}{goal:9.1f}")

    # 4. one step of the environment with it
    _, reward, _, _, info = env.step(action.numpy())
    print(f"reward {reward:.4f}, progress {info['progress']:.3f}")
    env.close()


if __name__ == "__main__":
    main()
