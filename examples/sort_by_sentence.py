# SPDX-License-Identifier: Apache-2.0
"""Film a segdepth policy that sorts cubes by sentences, one after the other in the same scene.

    python -m examples.sort_by_sentence --sentences "Put the green cube into the white bowl." \
        --checkpoint=outputs/demo/train/checkpoints/last/pretrained_model

The policy needs roles for the cube and the bowl, as that of `make demo`, which acts from RGB. One of
`so101-improve --task=place_cube` sorts cubes too, from masks and depth of the simulator, without training on
`sort_cubes`. The film shows the masks that the policy gets.
"""

import argparse
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from lerobot_env_so101_workbench.demos.takeovers import Actor, PolicyOptions
from lerobot_env_so101_workbench.policy_check import read_config
from lerobot_env_so101_workbench.sim.cameras import CameraSetup
from lerobot_env_so101_workbench.sim.initial_states import validation_initial_state
from lerobot_env_so101_workbench.sim.world import World
from lerobot_env_so101_workbench.tasks.base import Goal, is_in
from lerobot_processor_so101 import OBSERVED
from lerobot_processor_so101.arm import FPS
from lerobot_processor_so101.models import Segmenter, make_segmenter
from lerobot_processor_so101.perception.overlay import overlay
from lerobot_processor_so101.perception.roles import Roles

TASK = "sort_cubes"
SENTENCES = [
    "Put the green cube into the white bowl.",
    "Put the red cube into the blue bowl.",
    "Put the yellow cube into the blue bowl.",
]
SIDE, WIDTH, CAPTION = 320, 440, 36  # pixels
EVERY = 3  # ticks per frame of the film
_GREEN, _RED, _WHITE = (60, 170, 80), (200, 60, 50), (255, 255, 255)


def goal_of(sentence: str, names: Sequence[str]) -> Goal:
    """Return the cube and the bowl, of these classes, that a sentence names.

    Raises:
        ValueError: if it does not name one of each.
    """
    ids = Roles(["target", "container"], {"target": "cube", "container": "bowl"}, names).ids(sentence)
    return Goal(*(names[id_] for id_ in ids))


def masked_view(world: World, camera: str, segmenter: Segmenter | None, cameras: CameraSetup) -> np.ndarray:
    """Draw a camera with the masks of the segmenter or, without one, of the simulator."""
    if segmenter is None:
        rgb, ids, _ = world.render(camera, SIDE // 2, SIDE // 2, ids=True)
        return overlay(rgb, ids, world.class_names, legend=False)
    rgb = world.render(camera, cameras.height, cameras.width).rgb
    with torch.no_grad():
        scores = segmenter(torch.from_numpy(rgb).permute(2, 0, 1)[None] / 255)  # (1, 3, H, W)
    view = overlay(rgb, scores.ids(rgb.shape[:2])[0].numpy(), segmenter.class_names, legend=False)
    return np.asarray(Image.fromarray(view).resize((SIDE * 2 // 3, SIDE // 2)))


def frame_of(
    world: World,
    segmenter: Segmenter | None,
    cameras: CameraSetup,
    caption: str,
    colour: tuple[int, int, int],
) -> Image.Image:
    """Draw the front view, beside it both cameras with the policy's masks, and a caption below."""
    views = [masked_view(world, camera, segmenter, cameras) for camera in ("top", "wrist")]
    image = np.hstack([world.render("front", SIDE, WIDTH).rgb, np.vstack(views)])
    frame = Image.new("RGB", (image.shape[1], SIDE + CAPTION), (24, 24, 28))
    frame.paste(Image.fromarray(image))
    font = ImageFont.load_default(size=19)
    ImageDraw.Draw(frame).text((12, SIDE + 6), caption, fill=colour, font=font)
    return frame


def follow(
    world: World, segmenter: Segmenter | None, goal: Goal, actor: Actor, seed: int
) -> Iterator[Image.Image]:
    """Type the sentence of a goal, let the policy act on it, and yield the frames."""
    sentence, cameras = world.task.instruction(goal), actor.cameras
    for length in range(0, len(sentence) + 1, 2):
        yield frame_of(world, segmenter, cameras, f"> {sentence[:length]}_", _WHITE)
    world.goal = goal
    actor.reset(seed)
    for tick in range(world.task.time_limit_ticks):
        world.step(actor.act(world))
        if done := is_in(world, goal.pick, goal.into) and not world.is_touched(goal.pick):
            break
        if tick % EVERY == 0:
            yield frame_of(world, segmenter, cameras, f"> {sentence}", _WHITE)
    print(f"{sentence}: {'done' if done else 'failed'} after {(tick + 1) / FPS:.1f} s", flush=True)
    for _ in range(FPS // EVERY):
        yield frame_of(world, segmenter, cameras, f"> {sentence}", _GREEN if done else _RED)


def write(frames: Sequence[Image.Image], path: Path) -> None:
    """Write an animation in the format of the path's suffix, such as .webp or .gif."""
    path.parent.mkdir(parents=True, exist_ok=True)
    seconds = EVERY / FPS
    options = {"duration": round(1000 * seconds), "loop": 0, "quality": 60, "method": 6}
    frames[0].save(path, save_all=True, append_images=frames[1:], **options)


def film_sentences(
    checkpoint: Path, sentences: Sequence[str], path: Path, state: int = 0, level: str = "clean"
) -> None:
    """Let a policy act on sentences in one scene, and write the film.

    Raises:
        ValueError: if a sentence does not name one cube and one bowl.
    """
    config = read_config(checkpoint)
    segmenter = None if config.segmenter == OBSERVED else make_segmenter(config.segmenter)
    with closing(World(TASK, level)) as world:
        world.reset(validation_initial_state(TASK, level, state))
        goals = [goal_of(sentence, world.class_names) for sentence in sentences]
        actor = Actor(PolicyOptions(checkpoint), TASK, level)
        frames = [
            frame for seed, goal in enumerate(goals) for frame in follow(world, segmenter, goal, actor, seed)
        ]
    write(frames, path)
    print(f"{len(frames)} frames in {path}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--sentences", nargs="+", default=SENTENCES)
    parser.add_argument("--state", type=int, default=0, help="index of the validation initial state")
    parser.add_argument("--level", default="clean")
    parser.add_argument("--output", type=Path, default=Path("outputs/sort_by_sentence.webp"))
    options = parser.parse_args()
    film_sentences(options.checkpoint, options.sentences, options.output, options.state, options.level)


if __name__ == "__main__":
    main()
