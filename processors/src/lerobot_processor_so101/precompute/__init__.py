# SPDX-License-Identifier: Apache-2.0
"""`so101-precompute`: make a dataset with masks and disparity from one with images."""
