# SPDX-License-Identifier: Apache-2.0
"""Outputs of perception models: keys, scores, class maps, disparity, and how they are stored and deferred."""
