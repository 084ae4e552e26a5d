# SPDX-License-Identifier: Apache-2.0
"""`so101-improve`: train a policy, record takeovers where it fails, and train again."""
