# SPDX-License-Identifier: Apache-2.0
"""The frozen encoders: features of each view for any size, precision, and what is rejected."""

import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lerobot_policy_imf.text_encoder import TextEncoder, tokenizer_step
from lerobot_policy_imf.vision import VisionEncoder
from tests.conftest import count_pictures


@pytest.fixture
def encoder(siglip):
    return VisionEncoder(siglip)


def views(count=3, batch=2, size=(32, 32)):
    torch.manual_seed(0)
    return list(torch.rand(count, batch, 3, *size))


def test_features_equal_the_pooled_output_of_the_published_class(siglip, encoder):
    tower = transformers.SiglipVisionModel.from_pretrained(siglip).bfloat16().float()
    images = views(1)[0]
    expected = tower(pixel_values=(images - 0.5) / 0.5).pooler_output
    torch.testing.assert_close(encoder([images])[:, 0], expected)


def test_all_views_are_encoded_in_one_call_independently(encoder, monkeypatch):
    calls = count_pictures(monkeypatch, type(encoder.model))
    front, top, wrist = views()
    features = encoder([front, top, wrist])
    assert calls == [6]
    assert features.shape == (2, 3, encoder.output_dim)
    turned = encoder([wrist, front, top])
    torch.testing.assert_close(turned, features[:, [2, 0, 1]])
    changed = encoder([front, top + 0.1, wrist])
    torch.testing.assert_close(changed[:, [0, 2]], features[:, [0, 2]])
    assert not torch.allclose(changed[:, 1], features[:, 1])


def test_views_are_resized_unless_they_have_the_size_of_the_encoder(encoder):
    small, wide = views(1)[0], views(1, size=(48, 64))[0]
    features = encoder([small, wide])
    torch.testing.assert_close(features[:, 0], encoder([small])[:, 0])
    resized = torch.nn.functional.interpolate(wide, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(features[:, 1], encoder([resized])[:, 0])


def test_frames_of_a_sequence_are_encoded_one_by_one(encoder):
    images = torch.rand(2, 4, 3, 32, 32)
    torch.testing.assert_close(encoder([images])[:, 1, 0], encoder([images[:, 1]])[:, 0])


def test_cells_are_means_of_their_patches(siglip):
    encoder = VisionEncoder(siglip, 2)
    image = views(1)[0]
    patches = encoder.model(pixel_values=2 * image - 1).last_hidden_state.unflatten(1, (4, 4))
    cells = encoder([image])[:, 0].unflatten(-1, (4, -1))
    torch.testing.assert_close(cells[:, 1], patches[:, :2, 2:].mean((1, 2)))  # top right
    with pytest.raises(ValueError, match="vision_grid: found 3, expected a divisor of 4"):
        VisionEncoder(siglip, 3)


def test_it_stays_frozen_with_the_precision_of_its_checkpoint(encoder):
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    stored = encoder.state_dict()
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.bfloat16}
    before = {key: value.clone() for key, value in encoder.named_parameters()}
    encoder.load_state_dict(stored)
    assert all(torch.equal(before[key], value) for key, value in encoder.named_parameters())
    assert {value.dtype for value in encoder.parameters()} == {torch.float32}


def test_other_models_are_rejected(tmp_path):
    with pytest.raises(ValueError, match="vision_model_name: found no model under"):
        VisionEncoder(str(tmp_path / "nowhere"))
    transformers.CLIPVisionConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"type 'clip_vision_model'.*expected 'siglip'.*naflex"):
        VisionEncoder(str(tmp_path))


def test_a_model_with_missing_weights_is_rejected(siglip, tmp_path):
    folder = shutil.copytree(siglip, tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "post_layernorm" not in key}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"found no 'vision_model.post_layernorm.bias' among the weights .*2 are missing"
    ):
        VisionEncoder(str(folder))


def test_a_sentence_is_encoded_once_and_in_lower_case(siglip, monkeypatch):
    step, encoder = tokenizer_step(siglip), TextEncoder(siglip)
    reads = []
    forward = type(encoder.model).forward
    monkeypatch.setattr(
        type(encoder.model), "forward", lambda *args, **kwargs: reads.append(1) or forward(*args, **kwargs)
    )

    def tokens(*sentences):
        transition = {"observation": {}, "complementary_data": {"task": list(sentences)}}
        return step(transition)["observation"]["observation.language.tokens"]

    ids = tokens("Lift the cube.", "lift the cube.", "sort the cubes.")
    assert ids.shape == (3, 24)  # padded as in the model's training
    assert torch.equal(ids[0], ids[1])
    encoded = encoder(ids)
    assert len(reads) == 2
    assert torch.equal(encoded[0], encoded[1])
    assert not torch.allclose(encoded[0], encoded[2])
    encoder(ids)
    assert len(reads) == 2
