# SPDX-License-Identifier: Apache-2.0
"""Training of the suite's own segmenter, and looking at what a segmenter sees (seed 001)."""
