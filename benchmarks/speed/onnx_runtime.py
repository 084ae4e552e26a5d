# SPDX-License-Identifier: Apache-2.0
"""Processor time of the suite's segmenter by ONNX Runtime and by PyTorch, in turn, two images and one thread.

    python -m benchmarks.speed.onnx_runtime

The packaged weights on images of the simulator, one minute. Writes results/speed/onnx_runtime.json.
"""

import time
from statistics import median

import numpy as np
import torch

from lerobot_env_so101_workbench.sim.initial_states import training_initial_state
from lerobot_env_so101_workbench.sim.world import World
from lerobot_processor_so101.models.onnx_runtime import OnnxRuntimeModel
from lerobot_processor_so101.models.registry import make_segmenter

from ..lib.report import arguments, save, table

SIZES = ((84, 84), (120, 160), (480, 640))


@torch.no_grad()
def measure(height: int, width: int, calls: int) -> dict:
    """Return milliseconds per call of both, their ratio, and how far apart their outputs are."""
    # 1. two images of the simulator: (2, 3, H, W), normalised
    segmenter, world = make_segmenter(), World("lift_cube", "randomised")
    world.reset(training_initial_state("lift_cube", "randomised", 0))
    images = np.stack([world.render(view, height, width).rgb for view in ("top", "wrist")])
    segmenter.processor.size = {"height": height, "width": width}
    pixels = segmenter.prepare(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)["pixel_values"]
    world.close()
    # 2. both in turn
    models = {"torch": segmenter.model, "onnx_runtime": OnnxRuntimeModel(segmenter.model)}
    begin = time.process_time()
    outputs = {name: model(pixel_values=pixels) for name, model in models.items()}
    first_call = time.process_time() - begin
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(calls):
        for name, model in models.items():
            begin = time.process_time()
            model(pixel_values=pixels.to(memory_format=torch.channels_last))
            times[name].append(1000 * (time.process_time() - begin))
    # 3. compare
    logits = [output.logits for output in outputs.values()]
    return {
        "size": f"{height}x{width}",
        **{f"{name}_ms": round(median(values), 2) for name, values in times.items()},
        "ratio": round(median(times["torch"]) / median(times["onnx_runtime"]), 2),
        "first_call_s": round(first_call, 2),
        "same_class": float((logits[0].argmax(1) == logits[1].argmax(1)).float().mean()),
        "logits_max_difference": float(f"{(logits[0] - logits[1]).abs().max():.1e}"),
    }


def main() -> None:
    options = arguments(__doc__, calls=40)
    torch.set_num_threads(1)
    rows = save("speed/onnx_runtime", [measure(*size, options.calls) for size in SIZES], ("size",))
    print(table(list(rows[0]), [list(row.values()) for row in rows]))


if __name__ == "__main__":
    main()
