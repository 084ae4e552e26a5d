# SPDX-License-Identifier: Apache-2.0
"""Configuration of the suite's own segmenter."""

from transformers import PreTrainedConfig

from ...perception.class_map import CLASS_NAMES, ClassMap, ordered_labels

LOSSES = ("iou", "batch_iou", "ce", "iou+batch_iou", "batch_iou+ce")


class EfficientViTFPNConfig(PreTrainedConfig):
    """Configuration of `EfficientViTFPNForSemanticSegmentation`.

    The class names are transformers' `id2label`; by default, the six of `CLASS_NAMES`.

    Args:
        backbone: a timm model with features at strides 4, 8, 16 and 32.
        decoder_dim: channels of the decoder.
        unused_convs: keep the unused output convolutions of the three coarser levels. Only for checkpoints of
            the original layout, which have them (111,168 parameters).
        disparity_head: predict disparity beside the classes.
        loss: "iou" (soft intersection over union of each image), "batch_iou" (of each batch), "ce"
            (cross-entropy), or sums: "iou+batch_iou", "batch_iou+ce".
        single_objects: classes of which an image shows one object at most. Of their regions, only the largest
            counts; it is applied by the segmenter, after the network.
        training: record of the training (data, seed, command, IoU).

    Raises:
        ValueError: if `loss` is none of these, or `single_objects` has an unknown class.
    """

    model_type = "efficientvit_fpn"

    def __init__(
        self,
        backbone: str = "efficientvit_b0",
        decoder_dim: int = 64,
        unused_convs: bool = False,
        disparity_head: bool = False,
        loss: str = "iou",
        single_objects: list[str] | None = None,
        training: dict | None = None,
        **kwargs,
    ) -> None:
        if loss not in LOSSES:
            raise ValueError(f"loss: found {loss!r}, expected one of {', '.join(LOSSES)}.")
        self.backbone = backbone
        self.decoder_dim = decoder_dim
        self.unused_convs = unused_convs
        self.disparity_head = disparity_head
        self.loss = loss
        self.training = training
        if not {"id2label", "num_labels"} & kwargs.keys():
            kwargs["id2label"] = dict(enumerate(CLASS_NAMES))
            kwargs["label2id"] = {name: id_ for id_, name in enumerate(CLASS_NAMES)}
        super().__init__(**kwargs)
        names = ordered_labels(self)
        self.single_objects = [names[id_] for id_ in ClassMap(names, "classes").ids(single_objects or [])]
