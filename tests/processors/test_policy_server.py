# SPDX-License-Identifier: Apache-2.0
"""`so101-policy-server`: policies of plugins act through LeRobot's protocol, and no message runs code."""

import os
import pickle

import grpc
import numpy as np
import pytest
import torch
from lerobot.async_inference.helpers import RemotePolicyConfig, TimedObservation
from lerobot.transport import services_pb2, services_pb2_grpc
from lerobot.transport.utils import grpc_channel_options, send_bytes_in_chunks

from lerobot_policy_segdepth import SegDepthConfig
from lerobot_policy_segdepth.modeling_segdepth import SegDepthPolicy
from lerobot_processor_so101.arm import ACTION_NAMES
from lerobot_processor_so101.models import class_names_of
from lerobot_processor_so101.policy.server import serve
from lerobot_processor_so101.policy.trained_policy import load_policy
from tests.tiny import robot_features, save_policy, tiny_efficientvit_fpn

SIZE = (48, 64)
FEATURES = {
    "observation.state": {"dtype": "float32", "shape": (6,), "names": list(ACTION_NAMES)},
    "observation.images.top": {
        "dtype": "image",
        "shape": (*SIZE, 3),
        "names": ["height", "width", "channels"],
    },
}


@pytest.fixture
def client(free_port):
    server = serve(free_port)
    with grpc.insecure_channel(f"127.0.0.1:{free_port}", grpc_channel_options()) as channel:
        yield services_pb2_grpc.AsyncInferenceStub(channel)
    server.stop(None).wait()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A segdepth that runs its segmenter live."""
    folder = tmp_path_factory.mktemp("segdepth")
    segmenter = tiny_efficientvit_fpn(folder / "segmenter", disparity_head=True)
    names = list(class_names_of(segmenter))
    own = {"cameras": ["top"], "class_names": names, "watched_classes": names[1:3]}
    torch.manual_seed(0)
    config = SegDepthConfig(
        **robot_features(SIZE, ("top",)),
        **own,
        segmenter=segmenter,
        depth="segmenter",
        device="cpu",
        push_to_hub=False,
    )
    save_policy(SegDepthPolicy(config), folder / "policy")
    return folder / "policy"


def instructions(path, policy_type="segdepth"):
    return services_pb2.PolicySetup(
        data=pickle.dumps(RemotePolicyConfig(policy_type, str(path), FEATURES, 4))
    )


def observed(timestep=0):
    rng = np.random.default_rng(timestep)
    values = {name: float(value) for name, value in zip(ACTION_NAMES, rng.uniform(-20, 20, 6), strict=True)}
    return {**values, "top": rng.integers(0, 255, (*SIZE, 3), np.uint8), "task": "Lift the cube."}


def send(client, content):
    return client.SendObservations(send_bytes_in_chunks(pickle.dumps(content), services_pb2.Observation))


def test_a_policy_of_a_plugin_acts_as_without_the_server(client, checkpoint):
    client.Ready(services_pb2.Empty())
    client.SendPolicyInstructions(instructions(checkpoint))
    content = observed()
    send(client, TimedObservation(timestamp=0.0, timestep=0, observation=content, must_go=True))
    actions = pickle.loads(client.GetActions(services_pb2.Empty()).data)
    found = torch.stack([action.get_action() for action in actions])

    policy, preprocess, postprocess = load_policy(checkpoint)
    image = torch.from_numpy(content["top"]).permute(2, 0, 1)[None] / 255
    batch = {
        "observation.state": torch.tensor([[content[name] for name in ACTION_NAMES]]),
        "observation.images.top": image,
        "task": [content["task"]],
    }
    expected = postprocess(policy.predict_action_chunk(preprocess(batch)))[0, :4]
    torch.testing.assert_close(found, expected)


class Attack:
    """A message that creates a file when it is read carelessly."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_no_message_runs_code(client, checkpoint, tmp_path):
    attack = Attack(str(tmp_path / "attacked"))
    client.Ready(services_pb2.Empty())
    with pytest.raises(
        grpc.RpcError, match=r"found posix\.mkdir, expected the types that LeRobot's client sends"
    ):
        client.SendPolicyInstructions(services_pb2.PolicySetup(data=pickle.dumps(attack)))
    client.SendPolicyInstructions(instructions(checkpoint))
    for content in (attack, TimedObservation(0.0, 0, {**observed(), "task": attack}, must_go=True)):
        with pytest.raises(grpc.RpcError, match=r"posix\.mkdir"):
            send(client, content)
    assert not list(tmp_path.iterdir())


def test_a_checkpoint_that_names_a_class_is_refused(client, tmp_path):
    step = '{"steps": [{"class": "subprocess.Popen", "config": {"args": ["true"]}}]}'
    (tmp_path / "policy_preprocessor.json").write_text(step)
    client.Ready(services_pb2.Empty())
    with pytest.raises(grpc.RpcError, match=r"step 0 is the class 'subprocess\.Popen'"):
        client.SendPolicyInstructions(instructions(tmp_path, "act"))


def test_a_port_has_one_server(client, free_port):
    with pytest.raises(RuntimeError, match="Failed to bind"):
        serve(free_port)
