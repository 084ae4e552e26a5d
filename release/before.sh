#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Make what a page or a configuration needs from elsewhere, at reduced size (see run_docs.py): before.sh <page>
set -euo pipefail
masks="--height=84 --width=84 --rgb=false --seg=true --depth=true --video=false"
rgb="--height=120 --width=160"
train="lerobot-train --policy.type=segdepth --policy.device=cpu --policy.push_to_hub=false --output_dir=outputs/train"
from_rgb="$train --policy.segmenter=workbench --policy.depth=segmenter --dataset.repo_id=local/lift"

arm() { # an emulated one
    so101-virtual-arm "--cameras=[top,wrist]" --width=160 --height=120
}

segmenter() {
    so101-demos --root=outputs/arm $rgb
    so101-demos --root=outputs/labelled --seg=true --depth=true $rgb
    so101-train-segmenter --data='[outputs/labelled]' --output_dir=outputs/segmenter --disparity_head=true $rgb
}

case $1 in
docs/comparison.md)
    so101-demos --root=outputs/demos $masks
    $train --dataset.repo_id=local/demos --dataset.root=outputs/demos
    so101-benchmark --policy.path=outputs/train/checkpoints/last/pretrained_model --root=outputs/benchmark_a \
        --tasks='[lift_cube]' --levels='[clean]'
    cp -r outputs/benchmark_a outputs/benchmark_b
    for name in seed_0 seed_1 act_0 act_1; do cp -r outputs/benchmark_a/lift_cube_clean outputs/$name; done
    ;;
docs/datasets.md)
    so101-demos --root=outputs/demos --task=place_cube $masks
    lerobot-train --config_path=$(so101-config segdepth_place_cube) --dataset.root=outputs/demos \
        --output_dir=outputs/train
    so101-demos --root=outputs/recording $rgb
    ;;
docs/first_pick.md | lerobot_robot_so101/README.md)
    arm
    ;;
docs/perception.md | docs/precompute.md | processors/README.md)
    so101-demos --root=outputs/demos $rgb
    ;;
docs/real_arm.md | docs/real_arm_evaluation.md)
    so101-demos --root=outputs/rgb $rgb
    $from_rgb --dataset.root=outputs/rgb
    arm
    ;;
docs/real_arm_corrections.md)
    so101-demos --root=outputs/corrections $rgb
    lerobot-edit-dataset --repo_id=local/corrections --root=outputs/corrections --new_repo_id=local/lift \
        --new_root=outputs/arm --operation.type=remove_feature "--operation.feature_names=['intervention']"
    $from_rgb --dataset.root=outputs/arm
    ;;
docs/segdepth.md)
    segmenter
    so101-precompute --root=outputs/arm --output=outputs/arm_precomputed --segmenter=outputs/segmenter/best \
        --depth=segmenter
    lerobot-train --config_path=$(so101-config segdepth_arm)
    ;;
docs/segmenter.md)
    so101-demos --root=outputs/arm $rgb
    ;;
*/hlrp_3_policy.yaml)
    so101-demos --root=outputs/video --height=128 --width=128 --seg=true
    lerobot-train --config_path=$(so101-config hlrp_1_laq)
    lerobot-train --config_path=$(so101-config hlrp_2_foundation)
    ;;
*/segdepth_arm.yaml)
    segmenter
    ;;
esac
