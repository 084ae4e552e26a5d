# SPDX-License-Identifier: Apache-2.0
"""The frozen encoder: what each view becomes, whatever its size and its neighbours."""

import shutil

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from lerobot_policy_imf.instruction import TextEncoder, tokenizer_step
from lerobot_policy_imf.vision import VisionEncoder
from tests.conftest import count_pictures


@pytest.fixture
def encoder(siglip):
    return VisionEncoder.make(siglip, 0, None)


def views(count=3, batch=2, size=(32, 32)):
    torch.manual_seed(0)
    return list(torch.rand(count, batch, 3, *size))


def test_it_is_the_pooled_answer_of_the_published_class(siglip, encoder):
    tower = transformers.SiglipVisionModel.from_pretrained(siglip).bfloat16().float()
    pictures = views(1)[0]
    expected = tower(pixel_values=(pictures - 0.5) / 0.5).pooler_output
    torch.testing.assert_close(encoder([pictures])[:, 0], expected)


def test_all_views_are_seen_in_one_call_and_none_sees_another(encoder, monkeypatch):
    calls = count_pictures(monkeypatch, type(encoder.model))
    front, top, wrist = views()
    seen = encoder([front, top, wrist])
    assert calls == [6]
    assert seen.shape == (2, 3, encoder.output_dim)
    turned = encoder([wrist, front, top])
    torch.testing.assert_close(turned, seen[:, [2, 0, 1]])
    changed = encoder([front, top + 0.1, wrist])
    torch.testing.assert_close(changed[:, [0, 2]], seen[:, [0, 2]])
    assert not torch.allclose(changed[:, 1], seen[:, 1])


def test_views_of_any_size_are_resized_here_and_those_of_the_right_size_are_not(encoder):
    small, wide = views(1)[0], views(1, size=(48, 64))[0]
    seen = encoder([small, wide])
    torch.testing.assert_close(seen[:, 0], encoder([small])[:, 0])
    resized = torch.nn.functional.interpolate(wide, (32, 32), mode="bilinear", antialias=True)
    torch.testing.assert_close(seen[:, 1], encoder([resized])[:, 0])


def test_frames_in_time_are_seen_as_single_frames(encoder):
    pictures = torch.rand(2, 4, 3, 32, 32)
    torch.testing.assert_close(encoder([pictures])[:, 1, 0], encoder([pictures[:, 1]])[:, 0])


def test_cells_know_where_things_are(siglip):
    encoder = VisionEncoder.make(siglip, 2, None)
    picture = views(1)[0]
    patches = encoder.model(pixel_values=2 * picture - 1).last_hidden_state.unflatten(1, (4, 4))
    cells = encoder([picture])[:, 0].unflatten(-1, (4, -1))
    torch.testing.assert_close(cells[:, 1], patches[:, :2, 2:].mean((1, 2)))  # above, right
    with pytest.raises(ValueError, match="vision_grid: found 3, expected a divisor of 4"):
        VisionEncoder.make(siglip, 3, None)


def test_it_stays_frozen_and_as_precise_as_a_checkpoint_holds_it(encoder):
    encoder.train()
    assert not any(module.training for module in encoder.modules())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    stored = encoder.state_dict()
    assert {value.dtype for value in stored.values() if value.is_floating_point()} == {torch.bfloat16}
    before = {key: value.clone() for key, value in encoder.named_parameters()}
    encoder.load_state_dict(stored)
    assert all(torch.equal(before[key], value) for key, value in encoder.named_parameters())
    assert {value.dtype for value in encoder.parameters()} == {torch.float32}


def test_other_models_are_refused(tmp_path):
    with pytest.raises(ValueError, match="vision_model_name: found no model under"):
        VisionEncoder.make(str(tmp_path / "nowhere"), 0, None)
    transformers.CLIPVisionConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"type 'clip_vision_model'.*expected 'siglip'.*naflex"):
        VisionEncoder.make(str(tmp_path), 0, None)


def test_a_model_without_all_of_its_weights_is_refused(siglip, tmp_path):
    folder = shutil.copytree(siglip, tmp_path / "half")
    weights = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in weights.items() if "post_layernorm" not in key}
    save_file(kept, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(
        ValueError, match=r"found no 'vision_model.post_layernorm.bias' among the weights .*2 are missing"
    ):
        VisionEncoder.make(str(folder), 0, None)


def test_a_sentence_is_read_once_and_in_lower_case(siglip, monkeypatch):
    step, encoder = tokenizer_step(siglip), TextEncoder.make(siglip, None)
    reads = []
    forward = type(encoder.model).forward
    monkeypatch.setattr(
        type(encoder.model), "forward", lambda *args, **kwargs: reads.append(1) or forward(*args, **kwargs)
    )

    def tokens(*sentences):
        transition = {"observation": {}, "complementary_data": {"task": list(sentences)}}
        return step(transition)["observation"]["observation.language.tokens"]

    ids = tokens("Lift the cube.", "lift the cube.", "sort the cubes.")
    assert ids.shape == (3, 24)  # filled up, as the model learned it
    assert torch.equal(ids[0], ids[1])
    read = encoder(ids)
    assert len(reads) == 2
    assert torch.equal(read[0], read[1])
    assert not torch.allclose(read[0], read[2])
    encoder(ids)
    assert len(reads) == 2
