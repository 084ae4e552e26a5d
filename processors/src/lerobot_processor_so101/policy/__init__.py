# SPDX-License-Identifier: Apache-2.0
"""What policies have in common: pipelines, presets, checkpoints, averaged weights, training datasets."""
