"""psclap.models.wavlm against transformers' own WavLM of the same weights."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModel, BertConfig, WavLMConfig, WavLMModel
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from psclap.model_config import ParaSpeechCLAPConfig
from psclap.models.dual_encoder import ParaSpeechCLAPModel
from psclap.models.wavlm import Dropout, _GatedBias, accelerate

NUM_SAMPLES = (12000, 5003, 8321)
KINDS = {
    "base": {"feat_extract_norm": "group", "do_stable_layer_norm": False},
    "large": {"feat_extract_norm": "layer", "do_stable_layer_norm": True},
    "large, biases": {"feat_extract_norm": "layer", "do_stable_layer_norm": True, "conv_bias": True},
    "other convolutions": {"conv_dim": [8, 16, 24], "conv_kernel": [12, 7, 2], "conv_stride": [6, 3, 2]},
}


def config(kind: str, dropout: float = 0.0) -> WavLMConfig:
    small = {
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "intermediate_size": 96,
        "conv_dim": [32] * 7,
        "num_conv_pos_embeddings": 16,
        "num_conv_pos_embedding_groups": 4,
        "max_bucket_distance": 40,
        "num_buckets": 32,
        "layerdrop": 0.0,
        "apply_spec_augment": False,
    }
    names = ("hidden_dropout", "attention_dropout", "activation_dropout", "feat_proj_dropout")
    small |= KINDS[kind]
    small["num_feat_extract_layers"] = len(small["conv_dim"])
    return WavLMConfig(**small, **dict.fromkeys(names, dropout))


def both(kind: str, dropout: float = 0.0) -> tuple[WavLMModel, WavLMModel]:
    """Transformers' module and ours, with weights away from their initial zeros and ones."""
    torch.manual_seed(0)
    original = WavLMModel(config(kind, dropout))
    for parameter in original.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    ours = copy.deepcopy(original)
    accelerate(ours)
    assert type(ours.encoder.layers[0].attention) is not WavLMAttention
    return original, ours


def batch(num_samples: tuple[int, ...] = NUM_SAMPLES) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(max(num_samples)) < torch.tensor(num_samples)[:, None]
    return torch.randn(mask.shape, generator=generator) * mask, mask


def valid_states(model: WavLMModel, waves: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The last hidden states, 0 where there is padding."""
    states = model(waves, attention_mask=mask).last_hidden_state
    return states * model._get_feature_vector_attention_mask(states.shape[1], mask)[..., None]


def alone_states(model: WavLMModel, waves: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """As `valid_states`, each clip run by itself: transformers' base model depends on the padding of a batch."""
    states = [model(wave[None, : valid.sum()]).last_hidden_state[0] for wave, valid in zip(waves, mask, strict=True)]
    return nn.utils.rnn.pad_sequence(states, batch_first=True)


def gradients(model: WavLMModel, states: torch.Tensor) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    (states * torch.randn(states.shape, generator=generator)).sum().backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def check_equal(states: torch.Tensor, expected: torch.Tensor) -> None:
    assert (states - expected).abs().max() <= 1e-5 * expected.abs().max()


def check_gradients_equal(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    norm = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        difference = (found[name] - gradient).norm()
        assert difference <= 1e-4 * norm, name
        # Each on its own scale too; softmax does not depend on the keys' bias, whose gradient is rounding alone.
        assert difference <= 1e-4 * gradient.norm() or "k_proj.bias" in name, name


@pytest.mark.parametrize("mode", ["eager", "eager, as on a GPU"])
@pytest.mark.parametrize("kind", KINDS)
def test_equals_transformers(kind: str, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if "GPU" in mode:
        monkeypatch.setattr("psclap.models.wavlm._on_eager_cpu", lambda tensor: False)
    original, ours = both(kind)
    expected = alone_states(original.train(), *batch())
    states = valid_states(ours.train(), *batch())
    check_equal(states, expected)
    check_gradients_equal(gradients(ours, states), gradients(original, expected))
    with torch.no_grad():
        check_equal(valid_states(ours.eval(), *batch()), expected)
        waves, _ = batch()
        check_equal(ours(waves).last_hidden_state, original.eval()(waves).last_hidden_state)


def test_transformers_own_base_model_depends_on_padding() -> None:
    original, _ = both("base")
    expected, states = alone_states(original.eval(), *batch()), valid_states(original, *batch())
    assert (states - expected).abs().max() > 0.01


def test_the_bias_is_laid_out_as_the_kernels_of_a_gpu_take_it() -> None:
    _, ours = both("base")
    attention = ours.encoder.layers[0].attention
    states, mask = torch.randn(3, 37, 64), torch.arange(37) < torch.tensor([37, 5, 20])[:, None]
    position_bias = attention.compute_bias(37, 37)
    gate = attention._gate(states)
    bias = _GatedBias.apply(gate, position_bias, mask, torch.bfloat16)
    assert position_bias.is_contiguous()
    assert bias.shape == (3, 4, 37, 37)
    assert bias.stride() == (4 * 37 * 48, 37 * 48, 48, 1)  # else it is copied: rows must start at multiples of 16
    expected = (gate * position_bias[..., :37]).masked_fill(~mask[:, None, None], float("-inf")).softmax(-1)
    torch.testing.assert_close(bias.float().softmax(-1), expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("kind", ["base", "large"])
def test_padding_has_no_influence(kind: str) -> None:
    _, ours = both(kind)
    waves, mask = batch()
    with torch.no_grad():
        together = ours.eval()(waves, attention_mask=mask).last_hidden_state
        for clip, length in enumerate(NUM_SAMPLES):
            alone = ours(waves[clip : clip + 1, :length]).last_hidden_state[0]
            check_equal(together[clip, : len(alone)], alone)


@pytest.mark.parametrize("num_samples", [(400, 400), (400, 719), (400, 20000)])
@pytest.mark.parametrize("kind", ["base", "large"])
def test_short_clips_are_finite(kind: str, num_samples: tuple[int, ...]) -> None:
    original, ours = both(kind)
    expected = alone_states(original.train(), *batch(num_samples))
    states = valid_states(ours.train(), *batch(num_samples))
    assert states.isfinite().all()
    check_equal(states, expected)
    assert all(gradient.isfinite().all() for gradient in gradients(ours, states).values())


def test_a_clip_shorter_than_the_convolutions_is_refused_as_by_transformers() -> None:
    for model in both("base"):
        with pytest.raises(RuntimeError):
            model(torch.randn(1, 399))


@pytest.mark.parametrize("kind", ["base", "large"])
def test_gradient_checkpointing_changes_nothing(kind: str) -> None:
    _, ours = both(kind, dropout=0.1)
    results = []
    for checkpointing in (False, True):
        if checkpointing:
            ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        torch.manual_seed(5)
        states = valid_states(ours.train(), *batch())
        results.append((states.detach(), gradients(ours, states)))
    (states, expected), (checkpointed, found) = results
    assert torch.equal(checkpointed, states)
    check_gradients_equal(found, expected)


def test_dropout_is_drawn_in_training_only() -> None:
    _, ours = both("base", dropout=0.3)
    torch.manual_seed(3)
    first = valid_states(ours.train(), *batch())
    second = valid_states(ours, *batch())
    torch.manual_seed(3)
    assert torch.equal(valid_states(ours, *batch()), first)
    assert not torch.allclose(second, first)
    assert torch.equal(valid_states(ours.eval(), *batch()), valid_states(ours, *batch()))


def test_dropout_keeps_the_mean_and_the_rate() -> None:
    torch.manual_seed(4)
    dropped = Dropout(0.1).train()(torch.ones(1001, 999))
    assert dropped.unique().tolist() == pytest.approx([0.0, 1 / 0.9])
    # 5 standard deviations, of all and of each of the four places in a random word
    assert (dropped == 0).float().mean().item() == pytest.approx(0.1, abs=5 * (0.09 / 1e6) ** 0.5)
    for place in range(4):
        share = (dropped.flatten()[place::4] == 0).float().mean().item()
        assert share == pytest.approx(0.1, abs=5 * (0.09 / 2.5e5) ** 0.5)


def test_attention_dropout_has_the_mean_of_no_dropout() -> None:
    original, ours = both("base", dropout=0.0)
    attention = ours.encoder.layers[0].attention.train()
    states = torch.randn(2, 30, 64)
    expected = original.encoder.layers[0].attention(states)[0]
    attention.dropout = 0.5
    with torch.no_grad():
        drawn = torch.stack([attention(states)[0] for _ in range(60)])
    error = (drawn.mean(0) - expected) / (drawn.std(0) / 60**0.5)
    assert error.abs().mean() < 1.0  # of a normal distribution: 0.8
    assert drawn.std(0).mean() > 0.05 * expected.std()


def test_compiles_without_a_break() -> None:
    original, ours = both("large")
    compiled = torch.compile(ours.train(), backend="aot_eager", fullgraph=True)
    expected, states = (valid_states(model.train(), *batch()) for model in (original, ours))
    waves, mask = batch()
    check_equal(compiled(waves, attention_mask=mask).last_hidden_state * (states != 0), expected)


@pytest.mark.parametrize("kind", ["base", "large"])
def test_bf16_is_close(kind: str) -> None:
    original, ours = both(kind)
    expected = alone_states(original.train(), *batch())
    with torch.autocast("cpu", torch.bfloat16):
        states = valid_states(ours.train(), *batch())
    assert nn.functional.cosine_similarity(states.float().flatten(), expected.flatten(), dim=0) > 0.999
    found, of_original = gradients(ours, states.float()), gradients(original, expected)
    flat = [torch.cat([g[name].flatten() for name in of_original]) for g in (found, of_original)]
    assert nn.functional.cosine_similarity(*flat, dim=0) > 0.99


@pytest.mark.parametrize("kind", ["base", "large"])
def test_what_we_save_loads_in_plain_transformers(kind: str, tmp_path: Path) -> None:
    original, ours = both(kind)
    ours.save_pretrained(tmp_path)
    loaded, info = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert type(loaded.encoder.layers[0].attention) is WavLMAttention
    expected = original.state_dict()
    assert {name: tensor.shape for name, tensor in loaded.state_dict().items()} == {
        name: tensor.shape for name, tensor in expected.items()
    }
    assert all(torch.equal(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
    with torch.no_grad():
        check_equal(valid_states(ours.eval(), *batch()), alone_states(loaded.eval(), *batch()))


def test_the_dual_encoder_has_it_however_it_is_made(tmp_path: Path) -> None:
    text = BertConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50)
    model = ParaSpeechCLAPModel(ParaSpeechCLAPConfig(audio_config=config("base"), text_config=text, projection_dim=8))
    model.save_pretrained(tmp_path)
    loaded = ParaSpeechCLAPModel.from_pretrained(tmp_path)
    waves, mask = batch()
    with torch.no_grad():
        embeddings = [made.eval().embed_audio(waves, mask) for made in (model, loaded)]
    for made in (model, loaded):
        assert type(made.audio_model.encoder.layers[0].attention) is not WavLMAttention
    assert torch.equal(*embeddings)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        half = model.embed_audio(waves, mask)
    assert half.dtype == torch.float32
    assert (half * embeddings[0]).sum(1).min() > 0.999
    torch.testing.assert_close(half.norm(dim=1), torch.ones(len(half)), atol=1e-6, rtol=0)
