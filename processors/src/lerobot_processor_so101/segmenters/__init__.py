# SPDX-License-Identifier: Apache-2.0
"""Segmenters behind one contract: pictures in, `Scores` out."""

from .base import Segmenter
from .registry import WORKBENCH, class_names_of, is_open_vocabulary, make_segmenter

__all__ = ["WORKBENCH", "Segmenter", "class_names_of", "is_open_vocabulary", "make_segmenter"]
