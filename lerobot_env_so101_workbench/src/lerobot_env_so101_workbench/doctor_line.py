# SPDX-License-Identifier: Apache-2.0
"""The workbench's line on the page of `so101-doctor`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def rendering(config: Any) -> Iterator[tuple[str, str, str]]:
    """What was looked at, what was found, and what to do (nothing, if all is well): how pictures are made here."""
    import numpy as np

    from .rendering import make_renderer
    from .scene import build

    model = build(())
    renderer = make_renderer(model, np.zeros(model.ngeom, np.uint8))
    slow = renderer.name == "the ray-caster"
    fix = (
        "Pictures come several times faster with EGL; on Debian and Ubuntu: sudo apt install libegl1"
        if slow
        else ""
    )
    yield "rendering", renderer.name, fix
    renderer.close()
