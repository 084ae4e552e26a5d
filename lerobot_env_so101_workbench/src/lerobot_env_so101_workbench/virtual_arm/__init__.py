# SPDX-License-Identifier: Apache-2.0
"""A follower and a leader arm: emulated servos on serial ports, for LeRobot's own drivers."""
