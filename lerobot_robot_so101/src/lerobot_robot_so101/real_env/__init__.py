# SPDX-License-Identifier: Apache-2.0
"""`--env.type=so101_real`: evaluation on a real arm, with an operator who resets the scene."""
