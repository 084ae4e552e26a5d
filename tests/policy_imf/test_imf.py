# SPDX-License-Identifier: Apache-2.0
"""The imf policy: training, inference from single frames, and rejected input."""

import pytest
import torch
from lerobot.configs import FeatureType, NormalizationMode, PolicyFeature

from lerobot_policy_imf import IMFConfig, modeling_imf
from lerobot_policy_imf.configuration_imf import vision_key
from tests.conftest import count_pictures
from tests.policy_imf.conftest import observation, training_batch


def test_the_defaults_have_the_size_of_the_published_experiments():
    config = IMFConfig()
    assert (config.n_emb, config.n_layer, config.horizon, config.n_action_steps) == (384, 12, 16, 8)
    assert (config.n_obs_steps, config.cond_dim, config.per_view_output_dim) == (2, 384, 96)
    assert config.objective == "imf"
    assert config.residual == "attnres_full"
    assert config.num_inference_steps == 1


@pytest.mark.parametrize("width", [96, 192])
def test_widths_of_the_published_experiments(policy, width):
    made = policy(per_view_output_dim=width, cond_dim=384)
    assert made.model.observation.in_features == 3 * width + 6
    assert made.model.observation.out_features == 384
    condition = made._condition(made.model, training_batch())
    assert condition.shape == (4, 2, 384)


# -- training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["imf", "meanflow", "flow_matching"])
def test_it_overfits_one_batch(policy, objective):
    made = policy(objective=objective, ema_decay=0.0)
    batch = training_batch(8)
    optimizer = torch.optim.AdamW(made.get_optim_params(), lr=3e-3)
    losses = []
    for _ in range(40):
        torch.manual_seed(0)
        loss, _ = made.forward(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


def test_everything_but_the_encoders_is_trained(policy):
    made = policy(instruction=True)
    batch = {**training_batch(), "observation.language.tokens": torch.randint(2, 20, (4, 24))}
    trained = {id(parameter) for parameter in made.get_optim_params()}
    frozen = [*made.vision.parameters(), *made.text.parameters(), *made.ema.parameters()]
    assert not trained & {id(parameter) for parameter in frozen}
    assert trained == {id(parameter) for parameter in made.model.parameters()}
    made.train()
    made.forward(batch)[0].backward()
    without = [name for name, p in made.model.named_parameters() if p.grad is None]
    assert not without
    assert not made.vision.training
    assert not made.vision.model.training


def test_padding_of_an_episode_does_not_count(policy, monkeypatch):
    errors = {}
    monkeypatch.setattr(
        modeling_imf, "velocity_error", lambda *args, **kwargs: (errors["now"], torch.ones(2, 6, 6))
    )
    made, batch = policy(), training_batch()
    batch["action_is_pad"][:, 4:] = True
    errors["now"] = torch.randn(4, 6, 6)
    loss, _ = made.forward(batch)
    errors["now"] = errors["now"] + 1e4 * batch["action_is_pad"][..., None]
    assert torch.equal(made.forward(batch)[0], loss)


def test_one_loss_per_sample(policy):
    made = policy()
    torch.manual_seed(0)
    losses, logs = made.forward(training_batch(), reduction="none")
    torch.manual_seed(0)
    loss, _ = made.forward(training_batch())
    assert losses.shape == (4,)
    torch.testing.assert_close(losses.mean(), loss)
    assert {"loss", "loss_same_time", "loss_apart", "du_dt_p95"} == set(logs)
    with pytest.raises(ValueError, match="reduction: found 'sum'"):
        made.forward(training_batch(), reduction="sum")


def test_averages_are_learned_after_flow_matching_steps_also_when_resumed(policy, tmp_path, caplog):
    made = policy(flow_matching_steps=2)
    logs = made.forward(training_batch())[1]
    assert "loss_apart" in logs  # times with r < t are drawn from the first step
    assert "du_dt_p95" not in logs
    made.update()
    made.save_pretrained(tmp_path)
    assert "flow_matching_steps: found 2, and 1 steps are done" in caplog.text
    loaded = type(made).from_pretrained(tmp_path)
    loaded.train()
    assert "du_dt_p95" not in loaded.forward(training_batch())[1]
    loaded.update()
    assert "du_dt_p95" in loaded.forward(training_batch())[1]


def test_validation_under_no_grad_uses_the_averaged_weights(policy):
    made = policy()
    for parameter in made.model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    made.eval()
    torch.manual_seed(0)
    with torch.no_grad():
        before, _ = made.forward(training_batch())
    made.update()
    for parameter in made.model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    torch.manual_seed(0)
    with torch.no_grad():
        after, _ = made.forward(training_batch())
    torch.testing.assert_close(before, after)


# -- inference -----------------------------------------------------------------------------------------------


def test_the_encoder_runs_once_per_chunk_on_the_frames_it_needs(policy, monkeypatch):
    made = policy()
    calls = count_pictures(monkeypatch, type(made.vision.model))
    actions = [made.select_action(observation(1, seed)) for seed in range(7)]
    assert all(action.shape == (1, 6) for action in actions)
    assert calls == [6, 6, 6]  # three views of two frames, at ticks 0, 3 and 6


def test_a_chunk_begins_with_the_current_action(policy):
    made = policy()
    noise = torch.randn(1, 6, 6)
    made.select_action(observation(1, 0), noise=noise)
    made.select_action(observation(1, 1))
    made.select_action(observation(1, 2))
    acted = made.select_action(observation(1, 3), noise=noise)
    batch = {key: torch.stack([observation(1, 2)[key], observation(1, 3)[key]], 1) for key in observation(1)}
    with torch.no_grad():
        condition = made._condition(made.model, batch)
        zero, one = torch.zeros(1), torch.ones(1)
        expected = (noise - made.model.head(noise, zero, one, condition)).clamp(-1, 1)
    torch.testing.assert_close(acted, expected[:, 1])
    made.reset()
    assert made.predict_action_chunk(observation(1, 3), noise=noise).shape == (1, 5, 6)


def test_the_number_of_inference_steps_is_an_option(policy):
    made = policy()
    noise = torch.randn(2, 6, 6)
    chunks = {}
    for steps in (1, 2, 4):
        made.config.num_inference_steps = steps
        made.reset()
        chunks[steps] = made.predict_action_chunk(observation(), noise=noise)
    assert not torch.allclose(chunks[1], chunks[2])
    assert not torch.allclose(chunks[2], chunks[4])


def test_the_initial_noise_is_scaled(policy):
    made = policy()
    assert made.config.noise_scale == 0.5
    torch.manual_seed(0)
    drawn = made.predict_action_chunk(observation())
    torch.manual_seed(0)
    given = 0.5 * torch.randn(2, 6, 6)
    made.reset()
    torch.testing.assert_close(made.predict_action_chunk(observation(), noise=given), drawn, rtol=0, atol=0)
    made.config.noise_scale = 0.0
    made.reset()
    first = made.predict_action_chunk(observation())
    made.reset()
    torch.testing.assert_close(made.predict_action_chunk(observation()), first, rtol=0, atol=0)


def test_the_compiled_network_gives_the_same_actions(policy, monkeypatch):
    compiled = []

    def with_eager_backend(function):
        compiled.append(function)
        return compile_(function, backend="eager", fullgraph=True)

    compile_ = torch.compile
    monkeypatch.setattr(torch, "compile", with_eager_backend)
    made = policy()
    noise = torch.randn(2, 6, 6)
    expected = made.predict_action_chunk(observation(), noise=noise)
    made.config.compile_model = True
    for _ in range(2):
        made.reset()
        torch.testing.assert_close(made.predict_action_chunk(observation(), noise=noise), expected)
    assert len(compiled) == 1
    assert not any("compiled" in key for key in made.state_dict())


def test_actions_stay_in_the_range_of_the_demonstrations(policy):
    made = policy()
    torch.nn.init.normal_(made.model.head.out.weight, std=100.0)
    chunk = made.predict_action_chunk(observation())
    assert chunk.abs().max() == 1
    made.config.normalization_mapping["ACTION"] = NormalizationMode.MEAN_STD
    made.reset()
    assert made.predict_action_chunk(observation()).abs().max() > 1


def test_a_joint_that_never_moved_in_training_is_limited(policy):
    made = policy()
    frame = observation()
    frame["observation.state"][:, 0] = 1e6  # a small motion, divided by a range of zero
    other = observation()
    other["observation.state"][:, 0] = 2.0
    noise = torch.randn(2, 6, 6)
    first = made.predict_action_chunk(frame, noise=noise)
    made.reset()
    torch.testing.assert_close(first, made.predict_action_chunk(other, noise=noise))


def test_cached_and_live_features_give_the_same_action(policy):
    made = policy()
    frame, noise = observation(), torch.randn(2, 6, 6)
    live = made.predict_action_chunk(frame, noise=noise)
    features = made.vision([frame[f"observation.images.{camera}"] for camera in made.config.cameras])
    cached = {vision_key(camera): features[:, i] for i, camera in enumerate(made.config.cameras)}
    made.reset()
    stored = {"observation.state": frame["observation.state"], **cached}
    torch.testing.assert_close(made.predict_action_chunk(stored, noise=noise), live)
    made.reset()
    mixed = {key: value for key, value in frame.items() if "top" not in key}
    mixed[vision_key("top")] = cached[vision_key("top")]
    torch.testing.assert_close(made.predict_action_chunk(mixed, noise=noise), live)


def test_the_instruction_changes_the_actions(policy):
    made = policy(instruction=True)
    noise = torch.randn(2, 6, 6)
    chunks = []
    for sentence in (2, 3):
        made.reset()
        frame = {**observation(), "observation.language.tokens": torch.full((2, 24), sentence)}
        chunks.append(made.predict_action_chunk(frame, noise=noise))
    assert not torch.allclose(*chunks)


def test_real_time_chunking_is_not_supported(policy):
    assert not policy().supports_rtc()


# -- features ------------------------------------------------------------------------------------------------


def test_each_view_has_its_own_part_of_the_condition(policy):
    """Cameras that are permuted together with their projectors and columns give the same condition."""
    made = policy()
    features, state = made.encode_views(observation()), torch.zeros(2, 1, 6)
    before = made.model.condition(features, state, None)
    changed = features.clone()
    changed[:, :, 1] = torch.randn_like(changed[:, :, 1])
    assert not torch.allclose(made.model.condition(changed, state, None), before)
    order, width = [2, 0, 1], made.config.per_view_output_dim
    columns = torch.arange(made.model.observation.in_features)
    columns[: 3 * width] = columns[: 3 * width].unflatten(0, (3, width))[order].flatten()
    made.model.views = torch.nn.ModuleList(made.model.views[view] for view in order)
    made.model.observation.weight.data = made.model.observation.weight.data[:, columns]
    torch.testing.assert_close(made.model.condition(features[:, :, order], state, None), before)


def test_views_may_differ_in_size(policy):
    sizes = {"front": (48, 64), "top": (32, 32)}
    inputs = {
        f"observation.images.{camera}": PolicyFeature(FeatureType.VISUAL, (3, *size))
        for camera, size in sizes.items()
    }
    made = policy(inputs)
    frame = {f"observation.images.{camera}": torch.rand(1, 3, *size) for camera, size in sizes.items()}
    assert made.select_action({"observation.state": torch.zeros(1, 6), **frame}).shape == (1, 6)


def test_a_missing_view_is_rejected_by_name(policy):
    made = policy()
    frame = observation()
    del frame["observation.images.top"]
    with pytest.raises(ValueError, match=r"observation\.images\.top: found no image.*vision\.top.*cameras"):
        made.select_action(frame)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_head": 3}, "n_head: found 3 of n_emb = 16"),
        ({"n_emb": 18, "n_head": 2}, "n_head: found 2 of n_emb = 18.*even width"),
        ({"n_action_steps": 6}, "n_action_steps: found 6, expected at most 5"),
        (
            {"residual": "attnres_block", "attnres_blocks": 3},
            "attnres_blocks: found 3, expected a divisor of 4",
        ),
        ({"same_time_share": 0.7, "endpoint_share": 0.4}, "same_time_share and endpoint_share"),
        ({"objective": "diffusion"}, "objective: found 'diffusion', expected one of imf"),
        ({"loss": "l1"}, "loss: found 'l1'"),
        ({"ema_decay": 1.0}, "ema_decay: found 1.0"),
        ({"num_inference_steps": 0}, "num_inference_steps: found 0"),
        ({"n_emb": 0}, "n_emb: found 0"),
        ({"huber_delta": 0.0}, "huber_delta: found 0.0, expected more than 0"),
        ({"flow_matching_steps": -1}, "flow_matching_steps: found -1, expected 0 or more"),
        ({"noise_scale": -0.5}, "noise_scale: found -0.5, expected 0 or more"),
    ],
)
def test_invalid_options_are_rejected_by_name(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_unknown_cameras_are_rejected_by_name(policy):
    with pytest.raises(
        ValueError, match=r"cameras: found \['side'\], expected some of \['front', 'top', 'wrist'\]"
    ):
        policy(cameras=["side"])
    with pytest.raises(ValueError, match=r"cameras: found \[\], expected some of \[\]"):
        policy({})


def test_one_step_of_flow_matching_logs_a_warning(config, caplog):
    config(objective="flow_matching", num_inference_steps=1)
    assert "mean of all" in caplog.text
    caplog.clear()
    config(objective="flow_matching", num_inference_steps=10)
    config(objective="imf")
    assert not caplog.text


def test_endpoints_with_logit_normal_times_log_a_warning(config, caplog):
    config(time_sampler="logit_normal")
    config(time_sampler="logit_normal", objective="flow_matching", endpoint_share=0.1)
    assert "endpoint_share" not in caplog.text
    config(time_sampler="logit_normal", endpoint_share=0.1)
    assert "endpoint_share: found 0.1 with logit_normal, expected 0" in caplog.text


def test_masks_and_depth_are_not_views(policy):
    plane = PolicyFeature(FeatureType.VISUAL, (1, 32, 32))
    rgb = PolicyFeature(FeatureType.VISUAL, (3, 32, 32))
    made = policy({"observation.images.top": rgb, "observation.images.top_seg": plane})
    assert made.config.cameras == ["top"]
    assert set(made.config.input_features) == {"observation.state", "observation.images.top"}


def test_a_query_reads_the_content_and_the_position_of_its_cell():
    torch.manual_seed(0)
    project = modeling_imf.ViewProjector(dim=4 * 6, cells=4, output_dim=8)
    torch.nn.init.zeros_(project.queries.weight)
    project.queries.weight.data[:, 0] = 100.0  # cells with a large first number
    cells = torch.randn(4, 6)
    cells[:, 0] = -5.0
    cells[2, 0] = 5.0
    others = cells.clone()
    others[[0, 1, 3], 1:] = torch.randn(3, 5)
    moved = cells[[0, 2, 1, 3]]
    with torch.no_grad():
        read, same, elsewhere = (project(x.flatten()) for x in (cells, others, moved))
    torch.testing.assert_close(read, same)
    torch.testing.assert_close(elsewhere - read, project.places[1].data - project.places[2].data)
