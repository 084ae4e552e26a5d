# SPDX-License-Identifier: Apache-2.0
"""Processor steps; importing `lerobot_processor_so101` registers them under their names."""
