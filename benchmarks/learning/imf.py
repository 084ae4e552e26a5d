# SPDX-License-Identifier: Apache-2.0
"""Success of chunks predicted in one step: heads compared on the features of one frozen encoder.

    python -m benchmarks.learning.imf

`place_cube`, and `pass_post`, which has two modes. Every head learns from the same cached features of a small
SigLIP trained on workbench frames (`benchmarks.lib.small_siglip`), through LeRobot's own training, and acts
from images at the same frozen initial states. imf's network has 0.5 M parameters:

    imf                    its second half of the training learns average velocities
    flow_matching          the same network without average velocities
    regression             the same network, trained on the mean
    diffusion              LeRobot's with a U-Net of 5.8 M parameters, features as its environment state
    small diffusion        the same with 0.8 M
    ... from pixels        LeRobot's with a ResNet18 that it trains, for orientation, for as many steps of 8
                           frames as take about as long

Beside success: the share of passes on the left (demonstrations: half), the second difference of commands at
the boundary of two chunks and within one, and milliseconds per chunk. "Half the noise" is low-temperature
sampling (2211.15657). BENCH=full adds seeds and the ablations.
"""

import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets import LeRobotDataset
from lerobot.datasets.dataset_tools import add_features
from lerobot.utils.constants import OBS_ENV_STATE

from lerobot_env_so101_workbench.env import WorkbenchEnv
from lerobot_env_so101_workbench.sim.cameras import CameraSetup
from lerobot_policy_imf.configuration_imf import vision_key
from lerobot_policy_imf.vision import VisionEncoder
from lerobot_processor_so101.policy.trained_policy import batch_of_one, load_policy

from ..lib.clock import Clock
from ..lib.report import FULL, arguments, save, show
from ..lib.small_siglip import GRID, cached_features, small_encoder
from ..lib.study import TRAIN, Study, as_outcomes, compare, file_name, flags
from ..lib.untrained import IMAGES
from .imf_baselines import install_diffusion

TASKS = {"place_cube": (16_000, 32), "pass_post": (4_000, 64)}  # steps and batch size of the heads
CAMERAS = ("top", "wrist")
CHUNK = 8  # actions executed of each
HORIZON = {"horizon": 16, "n_action_steps": CHUNK, "n_obs_steps": 2}
SMALL = {"n_emb": 96, "n_layer": 4, "n_head": 4, "cond_dim": 96}
TRAINING = {"optimizer_lr": 1e-3, "scheduler_warmup_steps": 200}
DIFFUSION = {"type": "diffusion", "noise_scheduler_type": "DDIM", "num_inference_steps": 10}
DIFFUSION |= {"do_mask_loss_for_padding": True}
ACT = {"type": "act", "chunk_size": 16, "n_action_steps": CHUNK}
ACT |= {"optimizer_lr": 1e-4, "optimizer_lr_backbone": 1e-4}
# Options of each variant, the numbers of steps it acts with, and the scales of the noise it begins from.
VARIANTS: dict[str, tuple[dict[str, Any], tuple[int, ...], tuple[float | None, ...]]] = {
    "imf": ({}, (1, 2, 4), (1.0, 0.5)),
    "flow_matching": ({"objective": "flow_matching", "num_inference_steps": 10}, (10, 1), (1.0, 0.5)),
    "regression": ({}, (1,), (0.0,)),
    "diffusion": ({"down_dims": [64, 128, 256]}, (10,), (1.0, 0.5)),
    "small diffusion": ({"down_dims": [16, 32, 64]}, (10,), (1.0,)),
    "diffusion from pixels": ({"down_dims": [64, 128, 256]}, (10,), (1.0,)),
    "act from pixels": ({}, (1,), (None,)),
}
ABLATIONS: dict[str, dict[str, Any]] = {
    "averages from the start": {"flow_matching_steps": 0},
    "standard residual": {"residual": "standard"},
    "attnres_block": {"residual": "attnres_block", "attnres_blocks": 4},
    "logit-normal times": {"time_sampler": "logit_normal"},
    "logit-normal times, endpoints": {"time_sampler": "logit_normal", "endpoint_share": 0.1},
    "endpoints": {"endpoint_share": 0.1},
    "meanflow": {"objective": "meanflow"},
    "adaptive loss": {"loss": "adaptive"},
    "192 per view": {"per_view_output_dim": 192},
}
ALL = {**VARIANTS, **{name: (options, (1, 2), (1.0,)) for name, options in ABLATIONS.items()}}
# Trained by `imf_baselines`.
OWN = {"diffusion": "diffusion", "small diffusion": "diffusion", "regression": "regression"}


def small_imf(encoder: Path, steps: int) -> dict[str, Any]:
    """Return the options of imf on the small encoder, for a training of so many steps."""
    own = {"type": "imf", "vision_model_name": encoder, "vision_grid": GRID}
    return {**own, **HORIZON, **SMALL, "flow_matching_steps": steps // 2}


class Heads(Study):
    """The steps of the study."""

    def encoder(self) -> Path:
        """Train the shared encoder on other initial states than the demonstrations begin from."""
        shared = [*flags(episodes=self.options.frames, seed=40000, seg=True), *IMAGES]
        roots = [self.demonstrate(f"frames {task}", [f"--task={task}", *shared]) for task in TASKS]
        return small_encoder(self, roots)

    def demonstrations(self, task: str) -> Path:
        """Record the demonstrations of all variants."""
        options = flags(task=task, episodes=self.options.episodes, seed=20000)
        return self.demonstrate(task, [*options, *IMAGES])

    def features(self, task: str) -> Path:
        """Replace the images of the demonstrations by the encoder's features."""
        return cached_features(self, self.demonstrations(task), self.encoder())

    def environment_state(self, task: str, features: Path) -> Path:
        """Write the same features as LeRobot's diffusion reads vectors: in one key."""
        out = self.out / f"{task}_environment"

        def write() -> None:
            dataset = LeRobotDataset("local/features", root=features)
            columns = dataset.hf_dataset.select_columns([vision_key(camera) for camera in CAMERAS])
            values = np.stack([np.concatenate([r[vision_key(c)] for c in CAMERAS]) for r in columns])
            info = {"dtype": "float32", "shape": [values.shape[1]], "names": None}
            add_features(dataset, {OBS_ENV_STATE: (values, info)}, out, "local/environment")

        return self.once(out.name, write, out)

    def checkpoint(self, task: str, variant: str, seed: int) -> Path:
        """Train one variant."""
        steps, batch = (self.options.pixel_steps, 8) if "pixels" in variant else TASKS[task]
        options = flags(seed=seed, save_freq=steps // 2, batch_size=batch)
        # 1. the policy
        if "diffusion" in variant:
            policy = {**DIFFUSION, **HORIZON}
        elif variant == "act from pixels":
            policy = ACT
        else:
            policy = small_imf(self.encoder(), steps)
        # 2. what it learns from
        if "pixels" in variant:
            policy = {**policy, "pretrained_backbone_weights": None}
            options += flags("dataset.", root=self.demonstrations(task))
        else:
            policy = {**TRAINING, **policy}
            features = self.features(task)
            if "diffusion" in variant:
                options += flags("dataset.", root=self.environment_state(task, features))
            else:
                options += self.arrays(features)
        # 3. train
        options += ["--dataset.repo_id=local/imf", *flags("policy.", **policy | ALL[variant][0])]
        baseline = ("python", "-m", "benchmarks.learning.imf_baselines")
        command = (*baseline, OWN[variant]) if variant in OWN else TRAIN
        return self.train(f"{task} {variant} {seed}", options, steps, command)

    def variant(self, task: str, variant: str, seed: int) -> list[dict]:
        """Train one variant, and let it act with each number of steps, and some from half the noise."""
        checkpoint, rows = self.checkpoint(task, variant, seed), []
        for steps, scale in product(*ALL[variant][1:]):
            label = f"{variant}, {steps} step{'s' * (steps > 1)}{', half the noise' * (scale == 0.5)}"
            path = self.out / f"acts_{file_name(f'{task} {label} {seed}')}.json"
            if not path.exists():
                actor = Actor(checkpoint, steps, self.encoder(), scale)
                path.write_text(json.dumps(actor.run(task, self.options.initial_states)))
            found = json.loads(path.read_text())
            rows.append({"task": task, "variant": label, "seed": seed, **found})
            show([found])
        return rows


class SparseFrames(WorkbenchEnv):
    """The workbench, with images of the last two ticks before a new chunk, where a policy reads them."""

    images: dict[str, Any] = {}

    def _observe(self) -> dict[str, Any]:
        if self.world.ticks % CHUNK in (0, CHUNK - 1):
            self.images = super()._observe()
        return {**self.images, "agent_pos": self.world.joints().astype(np.float32)}


class Actor:
    """A trained policy in the workbench.

    Args:
        checkpoint, encoder: folders; LeRobot's diffusion on features needs the encoder.
        steps: evaluations of the network per chunk.
        noise_scale: of the noise that actions begin from; none for a policy without noise.
    """

    def __init__(self, checkpoint: Path, steps: int, encoder: Path, noise_scale: float | None) -> None:
        install_diffusion()
        self.policy, self.pre, self.post = load_policy(checkpoint, num_inference_steps=steps)
        self.noise_scale = noise_scale
        self.encoder: VisionEncoder | None = None
        self.images, self.features = None, torch.empty(0)  # the encoder's last input and output
        self.clock = Clock("vision", "head")
        config = self.policy.config
        if config.type == "imf":
            self.clock.watch("vision", self.policy.vision)
            self.clock.watch("head", self.policy._inference_model().head)  # the average of the weights
        elif config.type == "diffusion":
            self.clock.watch("head", self.policy.diffusion, "conditional_sample")
            if config.image_features:
                self.clock.watch("vision", self.policy.diffusion.rgb_encoder)
            else:
                self.encoder = VisionEncoder(str(encoder), GRID)
        else:
            self.clock.watch("head", self.policy.model)

    @torch.no_grad()
    def select(self, observation: dict[str, Any]) -> np.ndarray:
        """Return the next action, in LeRobot units."""
        with self.clock.phase("total"):
            batch = batch_of_one(observation)
            if self.encoder is not None:
                views = [batch.pop(f"observation.images.{camera}") for camera in CAMERAS]
                if observation["pixels"] is not self.images:
                    with self.clock.phase("vision"):
                        self.images, self.features = observation["pixels"], self.encoder(views).flatten(1)
                batch[OBS_ENV_STATE] = self.features
            scale = self.noise_scale
            options = {} if scale is None else {"noise": scale * torch.randn(1, 16, 6)}
            action = self.post(self.policy.select_action(self.pre(batch), **options))[0].numpy()
        self.clock.tick()
        return action

    def run(self, task: str, initial_states: int) -> dict:
        """Return the outcome at each initial state, and statistics of the motion."""
        env = SparseFrames(task, "clean", cameras=CameraSetup(CAMERAS, 96, 96))
        episodes = [self.episode(env, task, number) for number in range(initial_states)]
        env.close()
        passed = [left for success, left, _ in episodes if success and left is not None]
        boundary, within = jerks([commands for *_, commands in episodes])
        self.clock.ticks = [tick for tick in self.clock.ticks if tick["head"]]  # those that plan a chunk
        return {
            "outcomes": as_outcomes(success for success, *_ in episodes),
            "left": round(float(np.mean(passed)), 3) if passed else None,
            "change_at_boundary": boundary,
            "change_within": within,
            "ms": self.clock.summary(skip=5),
        }

    def episode(self, env: WorkbenchEnv, task: str, number: int) -> tuple[bool, bool | None, np.ndarray]:
        """Return success, whether the tool passed the post on the left, and all commands, of an episode."""
        torch.manual_seed(number)
        self.policy.reset()
        observation, info = env.reset(seed=1000 + number)
        left, commands, over = None, [], False
        while not over:
            commands.append(self.select(observation))
            observation, _, terminated, truncated, info = env.step(commands[-1])
            over = terminated or truncated
            if task == "pass_post" and left is None:
                pinch, post = env.world.pinch_point(), env.world.position("post")
                left = bool(pinch[1] > post[1]) if pinch[0] > post[0] else None
        return info["is_success"], left, np.array(commands)


def jerks(commands: list[np.ndarray]) -> tuple[float, float]:
    """Return the mean second difference of commands [deg per tick²] where a chunk begins, and elsewhere."""
    boundary, within = [], []
    for episode in commands:
        change = np.abs(np.diff(episode[:, :5], n=2, axis=0)).mean(1)  # of tick i + 2
        begins = np.arange(2, len(episode)) % CHUNK <= 1
        boundary += change[begins].tolist()
        within += change[~begins].tolist()
    return round(float(np.mean(boundary)), 3), round(float(np.mean(within)), 3)


def main() -> None:
    options = arguments(
        __doc__,
        {"tasks": TASKS, "variants": ALL},
        out=Path("outputs/learning_imf"),
        episodes=400,
        frames=60,  # episodes that the encoder is trained on
        encoder_steps=1500,
        pixel_steps=1500,
        seeds=[0, 1, 2] if FULL else [0],
        initial_states=200,
        tasks=list(TASKS),
        variants=list(ALL if FULL else VARIANTS),
    )
    study = Heads(options.out, options)
    cases = product(options.tasks, options.variants, options.seeds)
    rows = [row for case in cases for row in study.variant(*case)]
    rows = save("learning/imf", rows, ("task", "variant", "seed"), vars(options))
    labels = list(dict.fromkeys(row["variant"] for row in rows))
    compare(rows, product([label for label in labels if label.startswith("imf, ")], labels))


if __name__ == "__main__":
    main()
