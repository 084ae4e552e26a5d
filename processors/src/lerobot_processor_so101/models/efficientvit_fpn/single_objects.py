# SPDX-License-Identifier: Apache-2.0
"""Keep one region of each class of which an image shows one object at most.

A second region is a mistake there, and moves the centre of the mask to between the two.
"""

import numpy as np
from scipy import ndimage
from torch import Tensor


def keep_largest_regions(logits: Tensor, is_single: Tensor) -> Tensor:
    """Take all regions but the largest of each class from it; their pixels go to the next likely class.

    Args:
        logits: (B, C, h, w).
        is_single: (C,) bool, classes of which an image shows one object at most.

    Returns:
        (B, C, h, w); in the pixels that change, the class gets the lowest logit of the pixel.
    """
    kept, singles = logits.clone(), np.flatnonzero(is_single.cpu().numpy())
    for image in kept:  # (C, h, w)
        lowest = image.amin(0)
        for _ in range(len(image)):  # pixels that go to another single object may be its second region
            ids, changed = image.argmax(0).cpu().numpy(), False
            for id_ in singles:
                regions, count = ndimage.label(ids == id_)
                if count > 1:
                    largest = np.bincount(regions.ravel())[1:].argmax() + 1
                    others = image.new_tensor((regions > 0) & (regions != largest)).bool()
                    image[id_] = image[id_].where(~others, lowest)
                    changed = True
            if not changed:
                break
    return kept
