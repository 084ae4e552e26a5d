# SPDX-License-Identifier: Apache-2.0
"""Train the suite's own segmenter, and run segmenters on files."""
