# SPDX-License-Identifier: Apache-2.0
"""`so101-policy-server`: LeRobot's policy server, for policies of plugins too, and without code from clients.

    so101-policy-server --port=8080

A robot elsewhere uses LeRobot's client, `python -m lerobot.async_inference.robot_client`. What is unusual
compared with LeRobot's server:
- Policies of plugins are registered; LeRobot's server accepts its own list of types only.
- It listens on this machine only. The protocol has neither passwords nor encryption; a robot elsewhere
  connects through `ssh -L`.
- Messages are pickles. They are read with a list of allowed types, so that none can run code here.
- Images keep their size if the policy does not name one, and a policy is reset for every client.

Needs `grpcio`: `pip install 'lerobot_processor_so101[server]'`.
"""

import io
import logging
import pickle
from collections.abc import Iterator
from concurrent import futures
from dataclasses import dataclass
from typing import Any

try:
    import grpc
except ModuleNotFoundError:
    raise SystemExit(
        "so101-policy-server: found no grpcio. Install it: pip install 'lerobot_processor_so101[server]'"
    ) from None
from lerobot.async_inference import constants
from lerobot.async_inference.configs import PolicyServerConfig
from lerobot.async_inference.policy_server import PolicyServer
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.transport import services_pb2, services_pb2_grpc
from lerobot.transport.utils import receive_bytes_in_chunks, send_bytes_in_chunks
from lerobot.utils.import_utils import register_third_party_plugins

from ..cli import run_command
from ..config_checks import check_smallest
from .checkpoint import checkpoint_folder
from .trust import check_pipelines

HOST = "127.0.0.1"
# What LeRobot's client sends: its own messages, with arrays of NumPy and features.
_ALLOWED = {
    ("lerobot.async_inference.helpers", "RemotePolicyConfig"),
    ("lerobot.async_inference.helpers", "TimedObservation"),
    ("lerobot.configs.types", "FeatureType"),
    ("lerobot.configs.types", "PolicyFeature"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
}

logger = logging.getLogger(__name__)


@dataclass
class ServerConfig:
    """Options of `so101-policy-server`.

    Args:
        port: TCP port to listen on, of this machine only.
        fps: control periods per second of the robot.
    """

    port: int = 8080
    fps: int = 30

    def check(self) -> None:
        """Raise ValueError if an option is out of its range."""
        check_smallest(self, {"port": 1, "fps": 1}, "--")


class _Unpickler(pickle.Unpickler):
    """Read a pickle whose only types are those of `_ALLOWED`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(
                f"message: found {module}.{name}, expected the types that LeRobot's client sends only. "
                "It was not executed."
            )
        return super().find_class(module, name)


def read_message(data: bytes) -> Any:
    """Read a message of a client without executing anything.

    Raises:
        pickle.UnpicklingError: if it contains anything else than data.
    """
    return _Unpickler(io.BytesIO(data)).load()


class PluginPolicyServer(PolicyServer):
    """LeRobot's server, with checks before it reads a message."""

    def SendPolicyInstructions(self, request: Any, context: Any) -> Any:  # noqa: N802  name of the protocol
        """Load the policy that a client asks for."""
        specs = read_message(request.data)
        check_pipelines(checkpoint_folder(specs.pretrained_name_or_path))
        return super().SendPolicyInstructions(request, context)

    def SendObservations(self, request_iterator: Iterator[Any], context: Any) -> Any:  # noqa: N802  as above
        """Receive an observation."""
        data = receive_bytes_in_chunks(request_iterator, None, self.shutdown_event, "")
        if data is None:  # another client has just connected
            return services_pb2.Empty()
        read_message(data)  # about a millisecond; LeRobot reads it again, without a check
        return super().SendObservations(send_bytes_in_chunks(data, services_pb2.Observation), context)

    def Ready(self, request: Any, context: Any) -> Any:  # noqa: N802  name of the protocol
        """Begin with a new client: forget what the last one observed."""
        if self.policy is not None:
            self.policy.reset()
        return super().Ready(request, context)

    @property
    def policy_image_features(self) -> dict[str, PolicyFeature]:
        """Sizes that images get, by camera: the policy's or, if it has none, the robot's."""
        robot = {
            key: PolicyFeature(FeatureType.VISUAL, (feature["shape"][2], *feature["shape"][:2]))
            for key, feature in self.lerobot_features.items()
            if feature["dtype"] in ("image", "video")
        }
        return robot | self.policy.config.image_features


def serve(port: int, fps: int = 30) -> grpc.Server:
    """Start a server on this machine.

    Raises:
        RuntimeError: if the port is in use.
    """
    register_third_party_plugins()
    others = set(PreTrainedConfig.get_known_choices()) - set(constants.SUPPORTED_POLICIES)
    constants.SUPPORTED_POLICIES.extend(sorted(others))
    # without it a second server would share the port, and get every other message
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=4), options=[("grpc.so_reuseport", 0)])
    servicer = PluginPolicyServer(PolicyServerConfig(HOST, port, fps))
    services_pb2_grpc.add_AsyncInferenceServicer_to_server(servicer, server)
    server.add_insecure_port(f"{HOST}:{port}")
    server.start()
    return server


def main() -> None:
    """Run `so101-policy-server`."""

    def command(config: ServerConfig) -> None:
        config.check()
        server = serve(config.port, config.fps)
        logger.info("Listening on %s:%d, for this machine only. Ctrl-C ends it.", HOST, config.port)
        server.wait_for_termination()

    run_command("so101-policy-server", ServerConfig, command, log="lerobot_processor_so101")


if __name__ == "__main__":
    main()
