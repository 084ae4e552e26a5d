# SPDX-License-Identifier: Apache-2.0
# Makes this folder a package: draccus installs a top-level `tests` too, and would win over a folder without
# this file.
