# SPDX-License-Identifier: Apache-2.0
"""`so101-config`: where a configuration that comes with a policy's package is.

so101-config                                                   # list them
lerobot-train --config_path=$(so101-config segdepth_lift_cube)
"""

import argparse
import difflib
import sys
from importlib import metadata, util
from pathlib import Path

PREFIX = "lerobot_policy_"  # of the names of LeRobot's policy plugins


def find_configs() -> dict[str, Path]:
    """Return the YAML files in `configs/` of every installed policy plugin, by their names without suffix."""
    names = {distribution.name for distribution in metadata.distributions()}
    found: dict[str, Path] = {}
    for name in sorted(names):
        spec = util.find_spec(name) if name.startswith(PREFIX) else None
        if spec is not None and spec.origin is not None:
            found |= {path.stem: path for path in Path(spec.origin).parent.glob("configs/*.yaml")}
    return dict(sorted(found.items()))


def main() -> None:
    parser = argparse.ArgumentParser(description="Print the path of a configuration, or list all.")
    parser.add_argument("name", nargs="?", help="such as segdepth_lift_cube")
    name, configs = parser.parse_args().name, find_configs()
    if name is None:
        print("\n".join(configs))
    elif name in configs:
        print(configs[name])
    else:
        near = difflib.get_close_matches(name, configs, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        print(f"so101-config: found {name!r}, expected one of {', '.join(configs)}.{hint}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
