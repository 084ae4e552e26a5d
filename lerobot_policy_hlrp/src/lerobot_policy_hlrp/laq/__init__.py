# SPDX-License-Identifier: Apache-2.0
"""The latent action model: network, quantisers, teachers, file of labels, floor of the latent loss."""
