# SPDX-License-Identifier: Apache-2.0
"""An episode on the virtual arm: emulated servos, driven by the guarded robot as a real arm would be.

Moves the shoulder by 20 degrees and back at 30 Hz, and prints the measured positions; the robot logs what its
guard did. For a real arm, leave out `VirtualArm`, and use the port and the id of the arm.

    python -m examples.virtual_arm_episode
"""

import argparse
import math
from pathlib import Path

from lerobot.robots import make_robot_from_config
from lerobot.utils.robot_utils import precise_sleep
from lerobot.utils.utils import init_logging

from lerobot_env_so101_workbench.virtual_arm.arm import VirtualArm, VirtualArmConfig
from lerobot_processor_so101.arm import FPS
from lerobot_robot_so101 import SO101GuardedConfig

JOINT = "shoulder_pan.pos"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--port", type=Path, default=Path("/tmp/so101_example"))
    parser.add_argument("--seconds", type=float, default=3.0)
    options = parser.parse_args()
    init_logging()  # shows what the guard did

    with VirtualArm(VirtualArmConfig(leader="none", follower_port=options.port)):
        # 1. connect; the calibration file `virtual` was written by the virtual arm
        robot = make_robot_from_config(SO101GuardedConfig(port=str(options.port), id="virtual"))
        robot.connect()
        try:
            # 2. observe, command, wait
            present = robot.get_observation()
            home = {joint: present[joint] for joint in robot.action_features}
            ticks = round(options.seconds * FPS)
            for tick in range(ticks):
                offset = 10 * (1 - math.cos(2 * math.pi * tick / ticks))  # 0 to 20 deg and back
                sent = robot.send_action({**home, JOINT: home[JOINT] + offset})
                precise_sleep(1 / FPS)
                present = robot.get_observation()
                if tick % 15 == 0:
                    print(f"{tick / FPS:4.1f} s  sent {sent[JOINT]:6.1f}  measured {present[JOINT]:6.1f} deg")
        finally:
            robot.disconnect()


if __name__ == "__main__":
    main()
