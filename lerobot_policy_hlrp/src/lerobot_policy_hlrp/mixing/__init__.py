# SPDX-License-Identifier: Apache-2.0
"""`hlrp-mix`: merge several LeRobotDatasets into one."""
