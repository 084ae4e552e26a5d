# SPDX-License-Identifier: Apache-2.0
"""Segmenters with one interface, from images to `Scores`."""

from .registry import WORKBENCH, class_names_of, is_open_vocabulary, make_segmenter
from .segmenter import Segmenter

__all__ = ["WORKBENCH", "Segmenter", "class_names_of", "is_open_vocabulary", "make_segmenter"]
