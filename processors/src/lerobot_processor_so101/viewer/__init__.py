# SPDX-License-Identifier: Apache-2.0
"""`so101-view`: show images, masks and disparity of a dataset side by side."""
