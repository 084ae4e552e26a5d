# SPDX-License-Identifier: Apache-2.0
"""Record demonstrations and takeovers in the simulator: `so101-demos`."""
