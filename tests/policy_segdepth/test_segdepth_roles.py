# SPDX-License-Identifier: Apache-2.0
"""segdepth takes the object that the sentence names."""

import pytest
import torch
from lerobot.policies.factory import make_pre_post_processors

from lerobot_policy_segdepth.modeling_segdepth import SegDepthPolicy
from tests.policy_segdepth.test_segdepth import SIDE, config

NAMES = ["background", "finger", "red cube", "green cube", "blue bowl"]
OTHER = ["background", "black bowl", "white cube", "finger"]
ROLES = {"target": "cube", "container": "bowl"}


def make(**changes):
    """Return a policy with random weights, and its preprocessor."""
    torch.manual_seed(0)
    settings = {"class_names": NAMES, "watched_classes": ["target", "container", "finger"], "roles": ROLES}
    policy = SegDepthPolicy(config(**{**settings, **changes}))
    for parameter in policy.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    policy.eval()
    stats = {key: {"mean": torch.zeros(6), "std": torch.ones(6)} for key in ("observation.state", "action")}
    return policy, make_pre_post_processors(policy.config, dataset_stats=stats)[0]


def observation(places: dict[int, int]) -> dict:
    """Squares of class ids at columns."""
    ids = torch.zeros(1, 1, SIDE, SIDE)
    for id_, column in places.items():
        ids[..., 8:14, column : column + 4] = id_
    depth = torch.linspace(300, 400, SIDE).expand(1, 1, SIDE, SIDE)
    state = torch.zeros(1, 6)
    return {
        "observation.images.top_seg": ids,
        "observation.images.top_depth": depth,
        "observation.state": state,
    }


def act(made, places: dict[int, int], sentence: str, names: list[str] | None = None) -> torch.Tensor:
    policy, preprocessor = made
    policy.reset()
    added = {} if names is None else {"observation.class_names": names}
    return policy.predict_action_chunk(preprocessor({**observation(places), **added, "task": [sentence]}))


@pytest.mark.parametrize("encoder", ["geometry", "both"])
def test_exchanging_objects_and_names_changes_nothing(encoder):
    """The same image with another sentence is another task; with the cubes exchanged it is the same one."""
    made = make(encoder=encoder)
    red = act(made, {2: 3, 3: 15, 4: 9}, "Put the red cube into the blue bowl.")
    green = act(made, {2: 3, 3: 15, 4: 9}, "Put the green cube into the blue bowl.")
    exchanged = act(made, {2: 15, 3: 3, 4: 9}, "Put the green cube into the blue bowl.")
    assert (red - green).abs().max() > 1e-3
    torch.testing.assert_close(exchanged, red, rtol=0, atol=0)


def test_other_classes_do_not_matter():
    made = make()
    alone = act(made, {2: 3, 4: 9, 1: 19}, "Put the red cube into the blue bowl.")
    torch.testing.assert_close(
        act(made, {2: 3, 4: 9, 1: 19, 3: 15}, "Put the red cube into the blue bowl."), alone, rtol=0, atol=0
    )


def test_a_policy_serves_another_task_of_the_environment():
    made = make()
    known = act(made, {2: 3, 4: 9, 1: 19}, "Put the red cube into the blue bowl.")
    other = act(made, {2: 3, 1: 9, 3: 19}, "Put the white cube into the black bowl.", OTHER)
    torch.testing.assert_close(other, known, rtol=0, atol=0)


def test_without_roles_masks_of_other_classes_are_refused():
    made = make(roles={}, watched_classes=["red cube", "finger"])
    act(made, {2: 3}, "", NAMES)
    with pytest.raises(ValueError, match=r"class_names: found .*'red cube' with id 2.*--policy.roles"):
        act(made, {2: 3}, "", OTHER)


def test_a_frame_stack_has_one_sentence():
    made = make(n_obs_steps=2, stack_period=0.1)
    policy, preprocessor = made
    policy.reset()
    for column in (3, 5):
        frame = {**observation({2: column, 4: 9}), "task": ["Put the red cube into the blue bowl."]}
        chunk = policy.predict_action_chunk(preprocessor(frame))
    assert chunk.shape == (1, policy.config.chunk_size, 6)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"watched_classes": ["target"]}, r"expected also the roles \['container'\]"),
        ({"roles": {"target": "ball", "container": "bowl"}}, r"found no class for \['target'\]"),
        ({"roles": {"finger": "cube"}, "watched_classes": ["finger"]}, "expected other names than those of"),
        ({"encoder": "drqv2", "image_size": 84}, "roles: found .* expected none with encoder 'drqv2'"),
    ],
)
def test_bad_options_are_named(changes, message):
    settings = {"class_names": NAMES, "watched_classes": ["target", "container", "finger"], "roles": ROLES}
    with pytest.raises(ValueError, match=message):
        config(**{**settings, **changes})
