# SPDX-License-Identifier: Apache-2.0
"""Write LeRobotDatasets without losing a frame, and check that a dataset is complete."""

from .dataset import RecordingDataset
from .videos import VideoWriter, check_videos, count_frames

__all__ = ["RecordingDataset", "VideoWriter", "check_videos", "count_frames"]
