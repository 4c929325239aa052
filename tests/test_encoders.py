"""Any speech and any text encoder of transformers in the dual encoder: padding never changes an embedding."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    PreTrainedModel,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2FeatureExtractor,
    WhisperFeatureExtractor,
)

from psclap.config import EncoderConfig, ModelConfig, parse_params
from psclap.errors import PsclapError
from psclap.models.build import build_model, load_model
from psclap.models.dual_encoder import ParaSpeechCLAPModel
from psclap.models.processor import ParaSpeechCLAPProcessor

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
CONVOLUTIONS = {
    "conv_dim": [32] * 3,
    "conv_stride": [10, 8, 4],
    "conv_kernel": [10, 8, 4],
    "num_feat_extract_layers": 3,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
}
WHISPER = {
    **{"d_model": 32, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "num_mel_bins": 80},
    **{"decoder_layers": 1, "decoder_attention_heads": 2, "decoder_ffn_dim": 48, "vocab_size": 100},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1},
}


def of_waves(model_type: str, norm: str | None) -> dict[str, Any]:
    config = {"model_type": model_type, **SMALL, **CONVOLUTIONS}
    if norm is not None:  # of the first convolution: over time ("group", as in the base models) or channels ("layer")
        config["feat_extract_norm"] = norm
    if model_type in ("wavlm", "hubert", "wav2vec2", "unispeech"):
        config["do_stable_layer_norm"] = norm == "layer"
    return config


SPEECH = {
    **{
        f"{model_type}, {norm} norm": of_waves(model_type, norm)
        for model_type in ("wavlm", "hubert", "wav2vec2", "unispeech", "unispeech-sat", "wav2vec2-conformer", "sew")
        for norm in ("group", "layer")
    },
    "data2vec-audio": of_waves("data2vec-audio", None),
    "whisper": {"model_type": "whisper", **WHISPER},
    "w2v-bert": {"model_type": "wav2vec2-bert", **SMALL, "feature_projection_input_dim": 160},
}
TEXT = {
    "bert": {**SMALL, "max_position_embeddings": 64},
    "xlm-roberta": {**SMALL, "max_position_embeddings": 80},
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48, "max_position_embeddings": 64},
    "mpnet": {**SMALL, "max_position_embeddings": 80},
    "electra": {**SMALL, "embedding_size": 32},
    "modernbert": {**SMALL, "local_attention": 4},
    "deberta-v2": {**SMALL, "max_position_embeddings": 64},
    "t5": {"d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2},
}
CAPTIONS = ["A raspy man.", "A woman whispers softly, in a very long sentence indeed, which never ends.", "x"]


@pytest.fixture
def demo_config(params_mapping: dict[str, Any]) -> ModelConfig:
    return parse_params(params_mapping).model


def with_speech(base: ModelConfig, **encoder: Any) -> tuple[ParaSpeechCLAPModel, ParaSpeechCLAPProcessor]:
    config = dataclasses.replace(base, speech=EncoderConfig(pooling="mean", **encoder))
    model, processor = build_model(config, CAPTIONS, 16000, seed=1)
    return model.eval(), processor


def clips(*num_samples: int) -> list[np.ndarray]:
    """Unlike noise, no two of them have one spectrum."""
    rng = np.random.default_rng(0)
    sound = [rng.normal(0, 0.1, length) + np.sin(np.arange(length) * rng.uniform(0.01, 1)) for length in num_samples]
    return [wave.astype(np.float32) for wave in sound]


@pytest.mark.parametrize("kind", SPEECH)
def test_padding_never_changes_a_clip(kind: str, demo_config: ModelConfig) -> None:
    model, processor = with_speech(demo_config, config=SPEECH[kind])
    waves = clips(16000, 50000, 3300, 30001, 16000)
    with torch.no_grad():
        alone = torch.cat([model.embed_audio(**processor.waves([wave])) for wave in waves])
        together = model.embed_audio(**processor.waves(waves))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert (alone @ alone.T)[0, 1] < 0.9999  # different clips have different embeddings


@pytest.mark.parametrize("kind", ["hubert, group norm", "wavlm, group norm", "w2v-bert", "whisper"])
def test_padding_never_changes_a_gradient(kind: str, demo_config: ModelConfig) -> None:
    model, processor = with_speech(demo_config, config=SPEECH[kind])
    waves, found = clips(16000, 30000, 3300), []
    target = torch.randn(3, model.config.projection_dim, generator=torch.Generator().manual_seed(0))
    for batches in ([waves], [[wave] for wave in waves]):
        model.zero_grad()
        embedded = torch.cat([model.embed_audio(**processor.waves(batch)) for batch in batches])
        (embedded * target).sum().backward()
        found.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))
    together, alone = found
    assert (together - alone).norm() < 1e-5 * alone.norm()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
@pytest.mark.parametrize("kind", TEXT)
def test_padding_never_changes_a_caption(kind: str, pooling: Any, demo_config: ModelConfig) -> None:
    text = EncoderConfig(pooling=pooling, config={"model_type": kind, **TEXT[kind]})
    model, processor = build_model(dataclasses.replace(demo_config, text=text), CAPTIONS, 16000, seed=1)
    with torch.no_grad():
        alone = torch.cat([model.eval().embed_text(**processor.texts([caption])) for caption in CAPTIONS])
        together = model.embed_text(**processor.texts(CAPTIONS))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
    assert (alone @ alone.T).triu(1).max() < 0.999999


@pytest.mark.parametrize("kind", ["hubert, group norm", "whisper", "w2v-bert"])
def test_a_pretrained_encoder_of_any_kind_is_kept(kind: str, demo_config: ModelConfig, tmp_path: Path) -> None:
    pretrained = AutoModel.from_config(AutoConfig.for_model(**SPEECH[kind]))
    pretrained.save_pretrained(tmp_path / "speech")
    if kind == "whisper":
        WhisperFeatureExtractor(80).save_pretrained(tmp_path / "speech")
    if kind == "w2v-bert":
        SeamlessM4TFeatureExtractor(80, padding_value=1.0).save_pretrained(tmp_path / "speech")
    model, processor = with_speech(demo_config, pretrained=str(tmp_path / "speech"))
    check_weights(model.audio_model, pretrained.get_encoder() if kind == "whisper" else pretrained)
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    loaded, its_processor = load_model(tmp_path / "model")
    with torch.no_grad():
        expected = model.embed_audio(**processor.waves(clips(16000, 30000)))
        assert torch.equal(loaded.embed_audio(**its_processor.waves(clips(16000, 30000))), expected)


def check_weights(built: PreTrainedModel, original: PreTrainedModel) -> None:
    state = original.state_dict()
    assert built.state_dict().keys() == state.keys()
    assert all(torch.equal(tensor, state[name]) for name, tensor in built.state_dict().items())


def test_whisper_hears_what_transformers_features_say(demo_config: ModelConfig) -> None:
    model, processor = with_speech(demo_config, config=SPEECH["whisper"])
    wave = clips(24000)[0]
    features = WhisperFeatureExtractor(80)(wave, sampling_rate=16000, return_tensors="pt")["input_features"]
    with torch.no_grad():
        frames = model.audio_model(features).last_hidden_state[:, :75]  # 20 ms each
        expected = torch.nn.functional.normalize(model.audio_projection(frames.mean(1)), dim=1)
        torch.testing.assert_close(model.embed_audio(**processor.waves([wave])), expected, atol=1e-5, rtol=0)


def test_clips_that_an_encoder_cannot_hear_are_refused(demo_config: ModelConfig) -> None:
    _, processor = with_speech(demo_config, config=SPEECH["whisper"])
    with pytest.raises(PsclapError, match=r"too long: it has 30\.1 s.* 30 s at most; cut it into windows"):
        processor.waves(clips(16000, 481000))
    _, processor = with_speech(demo_config, config=SPEECH["wavlm, layer norm"])
    assert processor.waves(clips(320))["input_values"].shape == (1, 320)
    with pytest.raises(PsclapError, match=r"too short: it has 0\.020 s, and the speech encoder needs 0\.0"):
        processor.waves(clips(319))
    with pytest.raises(PsclapError, match=r"0\.000 s"):
        processor.waves([np.zeros(0, np.float32)])


def test_a_mel_encoder_takes_its_own_rate_only(demo_config: ModelConfig) -> None:
    config = dataclasses.replace(demo_config, speech=EncoderConfig(pooling="mean", config=SPEECH["whisper"]))
    with pytest.raises(PsclapError, match=r"hears 16000 Hz and the shards hold 22050 Hz"):
        build_model(config, CAPTIONS, 22050, seed=1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", ["wavlm, group norm", "hubert, layer norm", "whisper", "w2v-bert"])
def test_weights_in_16_bits_give_nearly_the_same(
    kind: str, dtype: torch.dtype, demo_config: ModelConfig, tmp_path: Path
) -> None:
    config = SPEECH[kind] | {
        "mask_time_prob": 0.0,
        "mask_feature_prob": 0.0,
    }  # w2v-BERT then begins with a norm
    model, processor = with_speech(demo_config, config=config)
    model.save_pretrained(tmp_path)
    smaller = AutoModel.from_pretrained(tmp_path, dtype=dtype).eval()
    assert next(parameter for name, parameter in smaller.named_parameters() if "attention" in name).dtype == dtype
    with torch.no_grad():
        for name, inputs in (("audio", processor.waves(clips(16000, 9000))), ("text", processor.texts(CAPTIONS))):
            expected, found = (getattr(each, f"embed_{name}")(**inputs) for each in (model, smaller))
            assert found.dtype == torch.float32
            assert (found * expected).sum(1).min() > 0.999


@pytest.mark.parametrize("kind", ["wav2vec2, layer norm", "wavlm, layer norm", "w2v-bert"])
def test_an_encoders_adapter_is_left_out(kind: str, demo_config: ModelConfig) -> None:
    model, processor = with_speech(demo_config, config=SPEECH[kind] | {"add_adapter": True})
    assert model.audio_model.adapter is None
    waves = clips(9000, 20000)
    with torch.no_grad():
        alone = torch.cat([model.embed_audio(**processor.waves([wave])) for wave in waves])
        torch.testing.assert_close(model.embed_audio(**processor.waves(waves)), alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "modernbert"])
def test_a_text_tower_sees_what_its_encoder_sees(kind: str, demo_config: ModelConfig) -> None:
    sizes = {"llama": {**SMALL, "num_key_value_heads": 2}, "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2}}
    text = EncoderConfig(pooling="mean", config={"model_type": kind, **{**TEXT, **sizes}[kind]})
    model, processor = build_model(dataclasses.replace(demo_config, text=text), CAPTIONS, 16000, seed=1)
    inputs = processor.texts(CAPTIONS)
    with torch.no_grad():
        states, mask = model.eval().text_model(**inputs).last_hidden_state, inputs["attention_mask"][..., None]
        mean = (states * mask).sum(1) / mask.sum(1)
        expected = torch.nn.functional.normalize(model.text_projection(mean), dim=1)
        torch.testing.assert_close(model.embed_text(**inputs), expected, atol=1e-5, rtol=0)


def test_a_pretrained_encoder_of_another_rate_is_refused(demo_config: ModelConfig, tmp_path: Path) -> None:
    AutoModel.from_config(AutoConfig.for_model(**SPEECH["wavlm, layer norm"])).save_pretrained(tmp_path)
    Wav2Vec2FeatureExtractor(sampling_rate=16000).save_pretrained(tmp_path)
    speech = EncoderConfig(pooling="mean", pretrained=str(tmp_path))
    config = dataclasses.replace(demo_config, speech=speech)
    with pytest.raises(PsclapError, match="wavlm hears 16000 Hz and the shards hold 8000 Hz"):
        build_model(config, CAPTIONS, 8000, seed=1)
    model, _ = build_model(config, CAPTIONS, 16000, seed=1)
    model.save_pretrained(tmp_path / "model")
    assert str(tmp_path) not in (tmp_path / "model" / "config.json").read_text()  # it tells nobody where that was


def test_whisper_hears_whole_seconds(demo_config: ModelConfig) -> None:
    with pytest.raises(PsclapError, match="max_source_positions 75 must be whole seconds"):
        with_speech(demo_config, config=SPEECH["whisper"] | {"max_source_positions": 75})
