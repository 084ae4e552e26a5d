# SPDX-License-Identifier: Apache-2.0
"""LeRobot's training with the dataset in memory, for studies on small recordings.

    python -m benchmarks.lib.train_in_memory [options of lerobot-train]

LeRobot decodes a row, images included, each time it is read, which costs a small network more than its own
step. Here each row is read once. The samples of a training and their order, and so its result, stay the same.
"""

from typing import Any

import torch
from datasets import Image
from lerobot.scripts import lerobot_train
from torch import Tensor


class Rows:
    """The rows of a Hugging Face dataset, with the interface that LeRobot's reader uses.

    Args:
        table: with LeRobot's transform.
    """

    def __init__(self, table: Any) -> None:
        self.table = table
        self.columns = {name: Column(table, name) for name in table.column_names}

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, key: int | str) -> Any:
        if isinstance(key, str):
            return self.columns[key]
        return {name: column[[key]][0] for name, column in self.columns.items()}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.table, name)  # everything else


class Column:
    """One column. RGB is stored as bytes."""

    def __init__(self, table: Any, name: str) -> None:
        rows = table.select_columns([name])
        self.rgb = isinstance(table.features[name], Image) and len(rows[0][name]) == 3
        batches = (rows[first : first + 500][name] for first in range(0, len(rows), 500))
        self.values = torch.cat([torch.stack([self._stored(value) for value in batch]) for batch in batches])

    def _stored(self, value: Tensor) -> Tensor:
        return (255 * value).round().byte() if self.rgb else value

    def __getitem__(self, indices: list[int]) -> list[Tensor]:
        return [value / 255 if self.rgb else value for value in self.values[indices]]


def read(make: Any) -> Any:
    """Wrap the function that makes LeRobot's datasets, so that they are read into memory."""

    def make_and_read(config: Any) -> Any:
        config.num_workers = 0  # a worker would get a copy of everything
        datasets = make(config)
        for dataset in datasets:
            if dataset is not None:
                reader = dataset._ensure_reader()
                reader.hf_dataset = Rows(reader.hf_dataset)
        return datasets

    return make_and_read


def main() -> None:
    module: Any = lerobot_train
    module.make_train_eval_datasets = read(module.make_train_eval_datasets)
    lerobot_train.main()


if __name__ == "__main__":
    main()
