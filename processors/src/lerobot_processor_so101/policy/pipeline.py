# SPDX-License-Identifier: Apache-2.0
"""Build the pipelines of a policy from LeRobot's standard steps and the policy's own."""

from collections.abc import Sequence
from typing import Any

from lerobot.configs import PreTrainedConfig
from lerobot.datasets import LeRobotDatasetMetadata
from lerobot.processor import (
    PolicyAction,
    PolicyProcessorPipeline,
    ProcessorStep,
    make_default_policy_processor_steps,
    make_policy_processor_pipelines,
)
from torch import Tensor

from ..steps.dataset_lookup import DatasetLookupProcessorStep
from .dataset_lookup import DatasetLookupMixin

type Stats = dict[str, dict[str, Tensor]]
type Pipelines = tuple[
    PolicyProcessorPipeline[dict[str, Any], dict[str, Any]],
    PolicyProcessorPipeline[PolicyAction, PolicyAction],
]


def make_pipelines(
    config: PreTrainedConfig,
    stats: Stats | None,
    *,
    dataset_meta: LeRobotDatasetMetadata | None = None,
    before_device: Sequence[ProcessorStep] = (),
    before_normalizer: Sequence[ProcessorStep] = (),
    after_unnormalizer: Sequence[ProcessorStep] = (),
) -> Pipelines:
    """Build the pipelines of a new policy; those of a checkpoint are rebuilt from its files instead.

    Args:
        config, stats: configuration of the policy, with its features, and their statistics in the dataset.
        dataset_meta: metadata of the dataset; by default that of the current training.
        before_device: steps on the CPU, such as tokenizers.
        before_normalizer: steps on the policy's device, such as perception.
        after_unnormalizer: steps on actions in the dataset's units.

    Returns:
        The preprocessor and the postprocessor, whose actions are on the CPU.
    """
    steps = make_default_policy_processor_steps(config, stats)
    on_cpu = [steps.rename_observations, steps.add_batch_dim, *before_device]
    if isinstance(config, DatasetLookupMixin):
        on_cpu.insert(0, DatasetLookupProcessorStep(config, dataset_meta))
    return make_policy_processor_pipelines(
        [*on_cpu, steps.to_device, *before_normalizer, steps.normalize],
        [steps.unnormalize, *after_unnormalizer, steps.to_cpu],
    )
