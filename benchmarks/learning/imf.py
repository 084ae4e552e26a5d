# SPDX-License-Identifier: Apache-2.0
"""Success of chunks predicted in one step: heads compared on the features of one frozen encoder.

    python -m benchmarks.learning.imf

`place_cube`, and `pass_post`, which has two modes. The encoder is a small SigLIP trained on workbench frames
(`benchmarks.lib.small_siglip`), because no pretrained SigLIP2 was available, and pooled by cells
(`vision_grid=4`). Every head learns from the same cached features of the same 400 demonstrations, clean,
through LeRobot's own training, and acts from images at the same 200 frozen initial states:

    imf             1, 2 and 4 steps of one training; average velocities are learned in its second half
    flow_matching   10 steps and 1 of one training: the same network without average velocities
    fine-tuned imf  1, 2 and 4 steps of a training that continues that of flow_matching for 5/8 as many steps,
    of which the
                    last 4/8 learn average velocities
    regression      the same network, trained on the mean
    diffusion       LeRobot's with a U-Net of 5.8 M parameters, twelve times ours, DDIM with 10 steps,
    features as its
                    environment state
    small diffusion the same with 0.8 M; ours has 0.5 M

imf, flow_matching and diffusion also from half the noise (low-temperature sampling, 2211.15657). For
orientation, LeRobot's with vision of their own (a ResNet18 that they train), and as many steps of 8 frames as
take about as long:

    diffusion from pixels       the U-Net of 5.8 M, DDIM with 10 steps; at its own size a step takes 11 s on a
    core act from pixels             at its own size

Beside success: the share of passes on the left (demonstrations: half), the second difference of commands at
    the boundary of two chunks and within one, and milliseconds per chunk. BENCH=full adds seeds and the
    ablations. A study that was stopped resumes. Writes results/learning/imf.json, where rows that are not
    measured again stay.
"""

import json
import os
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lerobot.datasets import LeRobotDataset
from lerobot.datasets.dataset_tools import add_features
from lerobot.utils.constants import OBS_ENV_STATE
from torch import Tensor

from lerobot_env_so101_workbench.env import WorkbenchEnv
from lerobot_env_so101_workbench.sim.cameras import CameraSetup
from lerobot_policy_imf.configuration_imf import vision_key
from lerobot_policy_imf.vision import VisionEncoder
from lerobot_processor_so101.policy.trained_policy import batch_of_one, load_policy

from ..lib.clock import Clock
from ..lib.report import arguments, save, table
from ..lib.small_siglip import GRID
from ..lib.study import TRAIN, Study, as_outcomes, compare, file_name
from .imf_baselines import install_diffusion

TASKS = {"place_cube": (16_000, 32), "pass_post": (4_000, 64)}  # steps and batch size of the heads
CAMERAS = ("top", "wrist")
IMAGES = ["--height=96", "--width=96", "--video=false"]
CHUNK = 8  # actions executed of each
HORIZON = ["--policy.horizon=16", f"--policy.n_action_steps={CHUNK}", "--policy.n_obs_steps=2"]
SMALL = ["--policy.n_emb=96", "--policy.n_layer=4", "--policy.n_head=4", "--policy.cond_dim=96"]
TRAINING = ["--policy.optimizer_lr=1e-3", "--policy.scheduler_warmup_steps=200"]
DIFFUSION = [
    "--policy.type=diffusion",
    "--policy.noise_scheduler_type=DDIM",
    "--policy.num_inference_steps=10",
]
DIFFUSION += ["--policy.do_mask_loss_for_padding=true"]
ACT = [
    "--policy.type=act",
    "--policy.chunk_size=16",
    "--policy.n_action_steps=8",
    "--policy.optimizer_lr=1e-4",
]
ACT += ["--policy.optimizer_lr_backbone=1e-4"]
HALF_NOISE = ("imf", "flow_matching", "diffusion")  # that also begin from half the noise
# Options of each variant, and the numbers of steps it acts with.
VARIANTS: dict[str, tuple[list[str], tuple[int, ...]]] = {
    "imf": ([], (1, 2, 4)),
    "flow_matching": (["--policy.objective=flow_matching", "--policy.num_inference_steps=10"], (10, 1)),
    "fine-tuned imf": ([], (1, 2, 4)),
    "regression": ([], (1,)),
    "diffusion": (["--policy.down_dims=[64,128,256]"], (10,)),
    "small diffusion": (["--policy.down_dims=[16,32,64]"], (10,)),
    "diffusion from pixels": (["--policy.down_dims=[64,128,256]"], (10,)),
    "act from pixels": ([], (1,)),
}
ABLATIONS = {
    "averages from the start": ["--policy.flow_matching_steps=0"],
    "standard residual": ["--policy.residual=standard"],
    "attnres_block": ["--policy.residual=attnres_block", "--policy.attnres_blocks=4"],
    "logit-normal times": ["--policy.time_sampler=logit_normal"],
    "logit-normal times, endpoints": ["--policy.time_sampler=logit_normal", "--policy.endpoint_share=0.1"],
    "endpoints": ["--policy.endpoint_share=0.1"],
    "meanflow": ["--policy.objective=meanflow"],
    "adaptive loss": ["--policy.loss=adaptive"],
    "192 per view": ["--policy.per_view_output_dim=192"],
}
ALL = {**VARIANTS, **{name: (options, (1, 2)) for name, options in ABLATIONS.items()}}
# Trained by `imf_baselines`.
OWN = {"diffusion": "diffusion", "small diffusion": "diffusion", "regression": "regression"}


class Heads(Study):
    """The steps of the study."""

    def encoder(self) -> Path:
        """Train the shared encoder on other initial states than the demonstrations begin from."""
        options = [f"--episodes={self.options.frames}", "--seed=40000", "--seg=true", *IMAGES]
        roots = [self.demonstrate(f"frames {task}", [f"--task={task}", *options]) for task in TASKS]
        out = self.out / "encoder"
        command = [
            "python",
            "-m",
            "benchmarks.lib.small_siglip",
            "--roots",
            *map(str, roots),
            f"--output={out}",
        ]
        return self.step(
            "encoder", [*command, f"--steps={self.options.encoder_steps}"], out / "model.safetensors"
        ).parent

    def demonstrations(self, task: str) -> Path:
        """Record the demonstrations of all variants."""
        count = self.options.episodes
        return self.demonstrate(task, [f"--task={task}", f"--episodes={count}", "--seed=20000", *IMAGES])

    def features(self, task: str) -> Path:
        """Replace the images of the demonstrations by the encoder's features."""
        root, out = self.demonstrations(task), self.out / f"{task}_features"
        command = ["so101-cache-vision", f"--root={root}", f"--output={out}", f"--vision_grid={GRID}"]
        command += [f"--vision_model_name={self.encoder()}", "--drop_rgb=true"]
        self.step(out.name, command, out / "meta" / "info.json")
        return out

    def environment_state(self, task: str) -> Path:
        """Write the same features as LeRobot's diffusion reads vectors: in one key."""
        features, out = self.features(task), self.out / f"{task}_environment"
        if not (out / "done").exists():
            dataset = LeRobotDataset("local/features", root=features)
            columns = dataset.hf_dataset.select_columns([vision_key(camera) for camera in CAMERAS])
            values = np.stack([np.concatenate([r[vision_key(c)] for c in CAMERAS]) for r in columns])
            info = {"dtype": "float32", "shape": [values.shape[1]], "names": None}
            add_features(dataset, {OBS_ENV_STATE: (values, info)}, out, "local/environment")
            (out / "done").touch()
        return out

    def checkpoint(self, task: str, variant: str, seed: int) -> Path:
        """Train one variant."""
        pixels, diffuses = "pixels" in variant, "diffusion" in variant
        steps, batch = (self.options.pixel_steps, 8) if pixels else TASKS[task]
        own = [
            "--dataset.repo_id=local/imf",
            f"--seed={seed}",
            f"--save_freq={steps // 2}",
            f"--batch_size={batch}",
        ]
        name = f"{task} {variant} {seed}"
        if variant == "fine-tuned imf":
            start = self.checkpoint(task, "flow_matching", seed)
            own += [f"--policy.path={start}", "--policy.objective=imf", "--policy.num_inference_steps=1"]
            own += [f"--policy.flow_matching_steps={steps * 9 // 8}", "--policy.scheduler_warmup_steps=200"]
            own += ["--policy.optimizer_lr=5e-4", *self.arrays(self.features(task))]
            return self.train(name, own, steps * 5 // 8)
        if diffuses:
            own += [*DIFFUSION, *HORIZON]
        elif pixels:
            own += ACT
        else:
            own += ["--policy.type=imf", f"--policy.vision_model_name={self.encoder()}", *HORIZON]
            own += [f"--policy.vision_grid={GRID}", *SMALL, f"--policy.flow_matching_steps={steps // 2}"]
        if pixels:
            own += [
                "--policy.pretrained_backbone_weights=null",
                f"--dataset.root={self.demonstrations(task)}",
            ]
        elif diffuses:
            own += [*TRAINING, f"--dataset.root={self.environment_state(task)}"]
        else:
            own += [*TRAINING, *self.arrays(self.features(task))]
        baseline = ("python", "-m", "benchmarks.learning.imf_baselines")
        command = (*baseline, OWN[variant]) if variant in OWN else TRAIN
        return self.train(name, [*own, *ALL[variant][0]], steps, command)

    def variant(self, task: str, variant: str, seed: int) -> list[dict]:
        """Train one variant, and let it act with each number of steps, and some from half the noise."""
        checkpoint = self.checkpoint(task, variant, seed)
        scales = {"regression": (0.0,), "act from pixels": (None,)}.get(variant, (1.0,))
        scales += (0.5,) if variant in HALF_NOISE else ()
        rows = []
        for steps, scale in product(ALL[variant][1], scales):
            label = f"{variant}, {steps} step{'s' * (steps > 1)}{', half the noise' * (scale == 0.5)}"
            path = self.out / f"acts_{file_name(f'{task} {label} {seed}')}.json"
            if not path.exists():
                actor = Actor(checkpoint, steps, self.encoder(), scale)
                path.write_text(json.dumps(actor.run(task, self.options.initial_states)))
            found = json.loads(path.read_text())
            rows.append({"task": task, "variant": label, "seed": seed, **found})
            print(table(list(found), [list(found.values())]), flush=True)
        return rows


class SparseFrames(WorkbenchEnv):
    """The workbench, rendering only where a policy reads images: at the last two ticks before a new chunk.

    In between it repeats the last images.
    """

    images: dict[str, Any] = {}

    def _observe(self) -> dict[str, Any]:
        if self.world.ticks % CHUNK in (0, CHUNK - 1):
            self.images = super()._observe()
        return {**self.images, "agent_pos": self.world.joints().astype(np.float32)}


class Actor:
    """A trained policy in the workbench.

    Args:
        checkpoint: folder.
        steps: evaluations of the network per chunk.
        encoder: folder of the encoder, for LeRobot's diffusion on features.
        noise_scale: of the noise that actions begin from; none for a policy without noise.
    """

    def __init__(self, checkpoint: Path, steps: int, encoder: Path, noise_scale: float | None) -> None:
        install_diffusion()
        self.policy, self.pre, self.post = load_policy(checkpoint, num_inference_steps=steps)
        self.noise_scale = noise_scale
        self.encoder: Any = None
        self.images, self.features = None, torch.empty(0)  # the encoder's last input and output
        self.clock = Clock("vision", "head")
        kind, timed = self.policy.config.type, self.clock.timed
        if kind == "imf":
            head = self.policy._inference_model().head  # the average of the weights
            self.policy.vision.forward = timed("vision", self.policy.vision.forward)
            head.forward = timed("head", head.forward)
        elif kind == "diffusion":
            network = self.policy.diffusion
            network.conditional_sample = timed("head", network.conditional_sample)
            if self.policy.config.image_features:
                network.rgb_encoder.forward = timed("vision", network.rgb_encoder.forward)
            else:
                self.encoder = VisionEncoder(str(encoder), GRID)
        else:
            self.policy.model.forward = timed("head", self.policy.model.forward)

    @torch.no_grad()
    def select(self, observation: dict[str, Any]) -> np.ndarray:
        """Return the next action, in LeRobot units."""
        with self.clock.phase("total"):
            batch = batch_of_one(observation)
            if self.encoder is not None:
                views: list[Tensor] = [batch.pop(f"observation.images.{camera}") for camera in CAMERAS]
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
        env = SparseFrames(task, "clean", cameras=CameraSetup(CAMERAS, 96, 96, True, False, False))
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


def jerks(commands: list[np.ndarray], chunk: int = CHUNK) -> tuple[float, float]:
    """Return the mean second difference of commands [deg per tick²] where a chunk begins, and elsewhere."""
    boundary, within = [], []
    for episode in commands:
        change = np.abs(np.diff(episode[:, :5], n=2, axis=0)).mean(1)  # of tick i + 2
        ticks = np.arange(2, len(episode))
        boundary += change[ticks % chunk <= 1].tolist()
        within += change[ticks % chunk > 1].tolist()
    return round(float(np.mean(boundary)), 3), round(float(np.mean(within)), 3)


def main() -> None:
    full = os.environ.get("BENCH") == "full"
    options = arguments(
        __doc__,
        {"tasks": TASKS, "variants": ALL},
        out=Path("outputs/learning_imf"),
        episodes=400,
        frames=60,  # episodes that the encoder is trained on
        encoder_steps=1500,
        pixel_steps=1500,
        seeds=[0, 1, 2] if full else [0],
        initial_states=200,
        tasks=list(TASKS),
        variants=list(ALL if full else VARIANTS),
    )
    study = Heads(options.out, options)
    cases = product(options.tasks, options.variants, options.seeds)
    rows = [row for case in cases for row in study.variant(*case)]
    rows = save("learning/imf", rows, ("task", "variant", "seed"), vars(options))
    labels = list(dict.fromkeys(row["variant"] for row in rows))
    ours = [label for label in labels if label.startswith(("imf, ", "fine-tuned imf, "))]
    compare(rows, product(ours, labels))


if __name__ == "__main__":
    main()
