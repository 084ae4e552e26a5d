# SPDX-License-Identifier: Apache-2.0
"""Segmenters behind one contract: pictures in, `Scores` out."""

from .base import Segmenter
from .registry import WORKBENCH, make_segmenter

__all__ = ["WORKBENCH", "Segmenter", "make_segmenter"]
