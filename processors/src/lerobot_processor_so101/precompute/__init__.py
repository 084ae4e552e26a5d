# SPDX-License-Identifier: Apache-2.0
"""`so101-precompute`: a new dataset with masks and disparity, made from one that has pictures."""
