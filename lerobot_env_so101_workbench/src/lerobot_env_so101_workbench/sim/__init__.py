# SPDX-License-Identifier: Apache-2.0
"""The simulation: the arm on its table, the props, the cameras and the scripted expert."""
