# SPDX-License-Identifier: Apache-2.0
"""What is a chunk of actions in one step worth? Heads of policies compared on the features of one frozen encoder.

    python -m benchmarks.imf

`place_cube`, and `pass_post`, which has two answers. No pretrained SigLIP2 is at hand, so the encoder is a small one of its
class, trained on workbench frames (`benchmarks.small_siglip`), and read by cells (`vision_grid=4`). Every head learns from the
same cached features of the same 400 demonstrations, clean, through LeRobot's own training, and acts from pictures on the same
200 frozen starts:

    imf             1, 2 and 4 steps of one training; averages are learned in its second half
    flow_matching   10 steps and 1 of one training: the same network without average velocities
    fine-tuned imf  1, 2 and 4 steps of a training that goes on from that of flow_matching for 5/8 as many steps, of which the
                    last 4/8 learn averages
    regression      the same network, told the mean
    diffusion       LeRobot's with a U-Net of 5.8 M parameters, which are twelve times ours, DDIM with 10 steps, features as its
                    environment state
    small diffusion the same with one of 0.8 M; as ours has 0.5 M

imf, flow_matching and diffusion also from half the noise (low-temperature sampling, 2211.15657). For orientation, LeRobot's with
vision of their own (a ResNet18 that they train), and as many steps of 8 frames as take about as long:

    diffusion from pixels       the U-Net of 5.8 M, DDIM with 10 steps; at its own size a step takes 11 s on a core
    act from pixels             at its own size

Beside success: the share of passes on the left (demonstrations: half), how abruptly commands change at the boundary of two
chunks and within one, and milliseconds per chunk. BENCH=full adds seeds and the ablations. Stopped and started again, it goes
on where it was. Writes results/imf.json, where arms that are not asked for stay.
"""

import argparse
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
from lerobot_env_so101_workbench.views import View
from lerobot_policy_imf.configuration_imf import vision_key
from lerobot_policy_imf.vision import VisionEncoder
from lerobot_processor_so101.trained_policy import batch_of_one, load_policy

from . import imf_diffusion
from .clock import Clock
from .report import load, save, table
from .small_siglip import GRID
from .study import TRAIN, Study, compare, row, with_earlier

TASKS = {"place_cube": (16_000, 32), "pass_post": (4_000, 64)}  # steps and batch that heads learn in
CAMERAS = ("top", "wrist")
PICTURES = ["--height=96", "--width=96", "--video=false"]
CHUNK = 8  # actions carried out of each
HORIZON = ["--policy.horizon=16", f"--policy.n_action_steps={CHUNK}", "--policy.n_obs_steps=2"]
SMALL = ["--policy.n_emb=96", "--policy.n_layer=4", "--policy.n_head=4", "--policy.cond_dim=96"]
TRAINING = ["--policy.optimizer_lr=1e-3", "--policy.scheduler_warmup_steps=200"]
HALF_NOISE = ("imf", "flow_matching", "diffusion")  # that begin from half the noise, too
# What each arm is trained as, and the numbers of steps it acts with.
ARMS: dict[str, tuple[list[str], tuple[int, ...]]] = {
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


class Heads(Study):
    """The steps of the study."""

    def encoder(self) -> Path:
        """The shared encoder, trained on other starts than the demonstrations begin from."""
        roots = [
            self.demonstrate(
                f"frames {task}",
                [
                    f"--task={task}",
                    f"--episodes={self.options.frames}",
                    "--seed=40000",
                    "--seg=true",
                    *PICTURES,
                ],
            )
            for task in TASKS
        ]
        out = self.out / "encoder"
        command = ["python", "-m", "benchmarks.small_siglip", "--roots", *map(str, roots), f"--output={out}"]
        command += [f"--steps={self.options.encoder_steps}"]
        self.step("encoder", command, out / "model.safetensors")
        return out

    def demonstrations(self, task: str) -> Path:
        """What all learn from."""
        count = self.options.episodes
        return self.demonstrate(task, [f"--task={task}", f"--episodes={count}", "--seed=20000", *PICTURES])

    def features(self, task: str) -> Path:
        """Demonstrations with what the encoder sees in the place of pictures."""
        root = self.demonstrations(task)
        out = self.out / f"{task}_seen"
        command = [
            "so101-cache-vision",
            f"--root={root}",
            f"--output={out}",
            f"--vision_model_name={self.encoder()}",
        ]
        options = [f"--vision_grid={GRID}", "--drop_rgb=true"]
        self.step(out.name, [*command, *options], out / "meta" / "info.json")
        return out

    def environment_state(self, task: str) -> Path:
        """The same features under the one name that LeRobot's diffusion takes vectors by."""
        seen, out = self.features(task), self.out / f"{task}_environment"
        if not (out / "done").exists():
            dataset = LeRobotDataset("local/seen", root=seen)
            columns = dataset.hf_dataset.select_columns([vision_key(camera) for camera in CAMERAS])
            values = np.stack([np.concatenate([r[vision_key(c)] for c in CAMERAS]) for r in columns])
            info = {"dtype": "float32", "shape": [values.shape[1]], "names": None}
            add_features(dataset, {OBS_ENV_STATE: (values, info)}, out, "local/environment")
            (out / "done").touch()
        return out

    def checkpoint(self, task: str, arm: str, seed: int, options: list[str]) -> Path:
        """Train one arm."""
        if arm == "fine-tuned imf":
            return self.fine_tuned(task, seed)
        pixels, diffuses = "pixels" in arm, "diffusion" in arm
        steps, batch = (self.options.pixel_steps, 8) if pixels else TASKS[task]
        given = [f"--seed={seed}", f"--save_freq={steps // 2}", f"--batch_size={batch}"]
        if diffuses:
            given += ["--policy.type=diffusion", "--policy.noise_scheduler_type=DDIM"]
            given += ["--policy.num_inference_steps=10", "--policy.do_mask_loss_for_padding=true"]
        elif pixels:
            given += ["--policy.type=act", "--policy.chunk_size=16", "--policy.n_action_steps=8"]
            given += ["--policy.optimizer_lr=1e-4", "--policy.optimizer_lr_backbone=1e-4"]
        else:
            given += ["--policy.type=imf", f"--policy.vision_model_name={self.encoder()}"]
            given += [f"--policy.vision_grid={GRID}", *SMALL]
            given += [f"--policy.flow_matching_steps={steps // 2}"]
        if diffuses or not pixels:
            given += HORIZON
        if pixels:
            root = self.demonstrations(task)
            given += ["--policy.pretrained_backbone_weights=null"]
        else:
            root = self.environment_state(task) if diffuses else self.features(task)
            given += TRAINING
        given += [f"--dataset.root={root}", "--dataset.repo_id=local/seen"]
        own = {
            "regression": "imf_regression",
            "diffusion": "imf_diffusion",
            "small diffusion": "imf_diffusion",
        }
        command = ("python", "-m", f"benchmarks.{own[arm]}") if arm in own else TRAIN
        return self.train(f"{task} {arm} {seed}", [*given, *options], steps, command)

    def fine_tuned(self, task: str, seed: int) -> Path:
        """Teach averages to what flow matching has trained."""
        steps, batch = TASKS[task]
        start = self.checkpoint(task, "flow_matching", seed, ARMS["flow_matching"][0])
        given = [f"--policy.path={start}", "--policy.objective=imf", "--policy.num_inference_steps=1"]
        given += [f"--policy.flow_matching_steps={steps * 9 // 8}"]
        given += ["--policy.optimizer_lr=5e-4", "--policy.scheduler_warmup_steps=200"]
        given += [f"--dataset.root={self.features(task)}", "--dataset.repo_id=local/seen"]
        given += [f"--seed={seed}", f"--save_freq={steps // 2}", f"--batch_size={batch}"]
        return self.train(f"{task} fine-tuned imf {seed}", given, steps * 5 // 8)

    def act(self, task: str, name: str, checkpoint: Path, steps: int, noise_scale: float | None) -> dict:
        """What a trained arm does at the frozen starts; kept in a file."""
        path = self.out / f"acts_{name.replace(' ', '_')}.json"
        if not path.exists():
            actor = Actor(checkpoint, steps, self.encoder(), noise_scale)
            path.write_text(json.dumps(actor.run(task, self.options.starts)))
        return json.loads(path.read_text())

    def arm(self, task: str, arm: str, seed: int, options: list[str], counts: tuple[int, ...]) -> list[dict]:
        """Train one arm and let it act with each number of steps, and some from half the noise."""
        checkpoint = self.checkpoint(task, arm, seed, options)
        scales = {"regression": (0.0,), "act from pixels": (None,)}.get(arm, (1.0,))
        scales += (0.5,) if arm in HALF_NOISE else ()
        rows = []
        for steps, scale in product(counts, scales):
            label, name = f"{arm}, {steps} step{'s' * (steps > 1)}", f"{task} {arm} {seed} {steps}"
            if scale == 0.5:
                label, name = f"{label}, half the noise", f"{name} half"
            found = self.act(task, name, checkpoint, steps, scale)
            rows.append(row(found.pop("successes"), task=task, arm=label, seed=seed) | found)
            print(table(list(found), [[str(value) for value in found.values()]]), flush=True)
        return rows


class Glimpses(WorkbenchEnv):
    """The workbench where pictures are only taken when a policy looks, which is at the last two ticks before a new chunk.

    Those in between are the last ones again; nobody looks at them.
    """

    seen: dict[str, Any] = {}

    def _observe(self) -> dict[str, Any]:
        if self.world.ticks % CHUNK in (0, CHUNK - 1):
            self.seen = super()._observe()
        return {**self.seen, "agent_pos": self.world.joints().astype(np.float32)}


class Actor:
    """A trained policy in the workbench.

    Args:
        checkpoint: folder.
        steps: evaluations of the network per chunk.
        encoder: folder of the encoder, for LeRobot's diffusion on features.
        noise_scale: of what actions begin from; none for a policy that begins from nothing.
    """

    def __init__(self, checkpoint: Path, steps: int, encoder: Path, noise_scale: float | None) -> None:
        imf_diffusion.install()
        self.policy, self.pre, self.post = load_policy(checkpoint, num_inference_steps=steps)
        self.noise_scale = noise_scale
        self.encoder: Any = None
        self.pictures, self.seen = None, torch.empty(0)  # last shown to the encoder, and what it saw
        self.clock = Clock("vision", "head")
        kind = self.policy.config.type
        if kind == "imf":
            self.policy.vision.forward = self.clock.timed("vision", self.policy.vision.forward)
            head = self.policy._acting_model().head  # the average of the weights
            head.forward = self.clock.timed("head", head.forward)
        elif kind == "diffusion":
            network = self.policy.diffusion
            network.conditional_sample = self.clock.timed("head", network.conditional_sample)
            if self.policy.config.image_features:
                network.rgb_encoder.forward = self.clock.timed("vision", network.rgb_encoder.forward)
            else:
                self.encoder = VisionEncoder.make(str(encoder), GRID, None)
        else:
            self.policy.model.forward = self.clock.timed("head", self.policy.model.forward)

    @torch.no_grad()
    def select(self, observation: dict[str, Any]) -> np.ndarray:
        """The next action, in LeRobot units."""
        with self.clock.phase("total"):
            batch = batch_of_one(observation)
            if self.encoder is not None:
                views: list[Tensor] = [batch.pop(f"observation.images.{camera}") for camera in CAMERAS]
                if observation["pixels"] is not self.pictures:
                    with self.clock.phase("vision"):
                        self.pictures, self.seen = observation["pixels"], self.encoder(views).flatten(1)
                batch[OBS_ENV_STATE] = self.seen
            scale = self.noise_scale
            options = {} if scale is None else {"noise": scale * torch.randn(1, 16, 6)}
            action = self.post(self.policy.select_action(self.pre(batch), **options))[0].numpy()
        self.clock.tick()
        return action

    def run(self, task: str, starts: int) -> dict:
        """Success at each start, and what the motion was like."""
        env = Glimpses(task, "clean", view=View(CAMERAS, 96, 96, True, False, False))
        episodes = [self.episode(env, task, start) for start in range(starts)]
        env.close()
        passed = [e["left"] for e in episodes if e["success"] and e["left"] is not None]
        boundary, within = jerks([e["commands"] for e in episodes])
        self.clock.ticks = [tick for tick in self.clock.ticks if tick["head"]]  # those that plan a chunk
        return {
            "successes": [e["success"] for e in episodes],
            "left": round(float(np.mean(passed)), 3) if passed else None,
            "change_at_boundary": boundary,
            "change_within": within,
            "ms": self.clock.summary(skip=5),
        }

    def episode(self, env: WorkbenchEnv, task: str, start: int) -> dict[str, Any]:
        """One start: whether it succeeded, on which side the tool passed the post, and all commands."""
        torch.manual_seed(start)
        self.policy.reset()
        observation, info = env.reset(seed=1000 + start)
        left, commands, over = None, [], False
        while not over:
            commands.append(self.select(observation))
            observation, _, terminated, truncated, info = env.step(commands[-1])
            over = terminated or truncated
            if task == "pass_post" and left is None:
                pinch, post = env.world.pinch_point(), env.world.position("post")
                left = bool(pinch[1] > post[1]) if pinch[0] > post[0] else None
        return {"success": int(info["is_success"]), "left": left, "commands": np.array(commands)}


def jerks(commands: list[np.ndarray], chunk: int = CHUNK) -> tuple[float, float]:
    """Mean second difference of commands [deg per tick²] where a chunk begins, and elsewhere."""
    boundary, within = [], []
    for acted in commands:
        change = np.abs(np.diff(acted[:, :5], n=2, axis=0)).mean(1)  # of tick i + 2
        ticks = np.arange(2, len(acted))
        boundary += change[ticks % chunk <= 1].tolist()
        within += change[ticks % chunk > 1].tolist()
    return round(float(np.mean(boundary)), 3), round(float(np.mean(within)), 3)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    full = os.environ.get("BENCH") == "full"
    parser.add_argument("--out", type=Path, default=Path("outputs/imf"))
    parser.add_argument("--episodes", type=int, default=400)
    parser.add_argument("--frames", type=int, default=60, help="episodes that the encoder learns from")
    parser.add_argument("--encoder_steps", type=int, default=1500)
    parser.add_argument("--pixel_steps", type=int, default=1500)
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[0, 1, 2] if full else [0], help="of training"
    )
    parser.add_argument("--starts", type=int, default=200)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--arms", nargs="+", choices=(*ARMS, *ABLATIONS), default=list(ARMS))
    options = parser.parse_args()
    names = [*options.arms, *(ABLATIONS if full else ())]
    study = Heads(options.out, options)
    arms = {**ARMS, **{name: (extra, (1, 2)) for name, extra in ABLATIONS.items()}}
    new = [
        found
        for task in options.tasks
        for name in dict.fromkeys(names)
        for seed in options.seeds
        for found in study.arm(task, name, seed, *arms[name])
    ]
    rows = with_earlier(load("imf"), new, ("task", "arm", "seed"))
    labels = list(dict.fromkeys(r["arm"] for r in rows))
    ours = [label for label in labels if label.startswith(("imf, ", "fine-tuned imf, "))]
    gains = compare(rows, ("task",), product(ours, labels))
    settings = {key: value for key, value in vars(options).items() if key not in ("out", "tasks", "arms")}
    print("written to", save("imf", {"settings": settings, "rows": rows, "paired": gains}))


if __name__ == "__main__":
    main()
