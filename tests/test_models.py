import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import WAVLM
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, Wav2Vec2FeatureExtractor

from psclap.config import EncoderConfig, ModelConfig, parse_params
from psclap.errors import CheckpointError, PsclapError
from psclap.models.build import build_model, load_model
from psclap.models.choice import check_encoders
from psclap.models.dual_encoder import ParaSpeechCLAPModel
from psclap.models.pooling import pool
from psclap.models.processor import ParaSpeechCLAPProcessor
from psclap.models.projection import Projection
from psclap.models.tokenizer import train_tokenizer

TEXTS = ["A raspy, low-pitched man speaks slowly.", "A woman whispers.", "The voice is loud and fast."]


@pytest.fixture
def demo_config(params_mapping: dict[str, Any]) -> ModelConfig:
    return parse_params(params_mapping).model


@pytest.fixture(params=["logmel_conv", "wavlm"])
def config(request: pytest.FixtureRequest, demo_config: ModelConfig) -> ModelConfig:
    if request.param == "logmel_conv":
        return demo_config
    return dataclasses.replace(demo_config, speech=EncoderConfig(pooling="mean", config=WAVLM))


def waves(*lengths: int) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.normal(0, 0.1, length).astype(np.float32) for length in lengths]


def embed(model: ParaSpeechCLAPModel, processor: ParaSpeechCLAPProcessor, clips: list[np.ndarray]) -> torch.Tensor:
    with torch.no_grad():
        return model.eval().embed_audio(**processor.waves(clips))


def test_padding_never_changes_an_embedding(config: ModelConfig) -> None:
    model, processor = build_model(config, TEXTS, 16000, seed=1)
    clips = waves(16000, 50000, 3000, 30001)
    alone = torch.cat([embed(model, processor, [clip]) for clip in clips])
    torch.testing.assert_close(embed(model, processor, clips), alone, atol=1e-5, rtol=0)
    assert torch.allclose(alone.norm(dim=1), torch.ones(4))
    assert (alone @ alone.T)[0, 1] < 0.99999  # different clips have different embeddings

    ids = [processor.texts([text]) for text in TEXTS]
    with torch.no_grad():
        alone = torch.cat([model.embed_text(**one) for one in ids])
        together = model.embed_text(**processor.texts(TEXTS))
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)


def test_a_saved_model_loads_as_it_was(config: ModelConfig, tmp_path: Path) -> None:
    model, processor = build_model(config, TEXTS, 16000, seed=1)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.bin"))  # safetensors only
    loaded, loaded_processor = load_model(tmp_path)
    clips = waves(16000, 20000)
    assert torch.equal(embed(loaded, loaded_processor, clips), embed(model, processor, clips))
    assert not loaded.training
    with torch.no_grad():
        expected = model.embed_text(**processor.texts(TEXTS))
        assert torch.equal(loaded.embed_text(**loaded_processor.texts(TEXTS)), expected)


def test_equal_seeds_give_equal_weights(config: ModelConfig) -> None:
    one, two, other = (build_model(config, TEXTS, 16000, seed=seed)[0].state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_encoders_load_from_pretrained_folders(demo_config: ModelConfig, tmp_path: Path) -> None:
    speech = AutoModel.from_config(AutoConfig.for_model(**WAVLM, layerdrop=0.5, apply_spec_augment=True))
    speech.save_pretrained(tmp_path / "speech")
    assert demo_config.text.config is not None
    assert demo_config.tokenizer_vocab_size is not None
    tokenizer = train_tokenizer(TEXTS, demo_config.tokenizer_vocab_size, 64)
    text = AutoModel.from_config(AutoConfig.for_model(**demo_config.text.config, vocab_size=len(tokenizer)))
    text.save_pretrained(tmp_path / "text")
    tokenizer.save_pretrained(tmp_path / "text")
    config = dataclasses.replace(
        demo_config,
        speech=EncoderConfig(pooling="mean", pretrained=str(tmp_path / "speech")),
        text=EncoderConfig(pooling="cls", pretrained=str(tmp_path / "text")),
        tokenizer_vocab_size=None,
    )
    model, processor = build_model(config, [], 16000, seed=1)
    for built, original in ((model.audio_model, speech), (model.text_model, text)):
        state = built.state_dict()
        assert state
        assert all(torch.equal(value, original.state_dict()[name]) for name, value in state.items())
    assert model.config.audio_config.layerdrop == 0.0
    assert not model.config.audio_config.apply_spec_augment
    assert model.text_model.pooler is None
    assert not model.audio_model.masked_spec_embed.requires_grad
    assert processor.tokenizer.model_max_length == 64


def test_an_encoder_that_is_not_there_is_named(demo_config: ModelConfig, tmp_path: Path) -> None:
    speech = EncoderConfig(pooling="mean", pretrained=str(tmp_path / "nowhere"))
    with pytest.raises(PsclapError, match=r"nowhere.*cannot be loaded"):
        build_model(dataclasses.replace(demo_config, speech=speech), TEXTS, 16000, seed=1)
    speech = EncoderConfig(pooling="mean", config={"model_type": "wavln"})
    with pytest.raises(PsclapError, match="wavln"):
        build_model(dataclasses.replace(demo_config, speech=speech), TEXTS, 16000, seed=1)


def test_pretrained_weights_are_loaded_whole_and_in_float32(demo_config: ModelConfig, tmp_path: Path) -> None:
    speech = AutoModel.from_config(AutoConfig.for_model(**WAVLM))
    speech.to(torch.bfloat16).save_pretrained(tmp_path / "speech")
    config = dataclasses.replace(demo_config, speech=EncoderConfig(pooling="mean", pretrained=str(tmp_path / "speech")))
    model, _ = build_model(config, TEXTS, 16000, seed=1)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}

    tensors = load_file(tmp_path / "speech" / "model.safetensors")
    del tensors["encoder.layers.1.feed_forward.output_dense.weight"]
    save_file(tensors, tmp_path / "speech" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PsclapError, match=r"lack 1 .*encoder\.layers\.1\.feed_forward"):
        build_model(config, TEXTS, 16000, seed=1)


def test_a_misspelt_encoder_setting_is_named(demo_config: ModelConfig) -> None:
    assert demo_config.speech.config is not None
    speech = EncoderConfig(pooling="mean_std", config={**demo_config.speech.config, "num_layer": 2})
    with pytest.raises(PsclapError, match="num_layer"):
        check_encoders(dataclasses.replace(demo_config, speech=speech))


@pytest.mark.parametrize("normalise", [True, False])
def test_the_processor_equals_transformers_feature_extractor(demo_config: ModelConfig, normalise: bool) -> None:
    _, processor = build_model(dataclasses.replace(demo_config, normalise_audio=normalise), TEXTS, 16000, seed=1)
    clips = waves(16000, 5000, 9999)
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=16000, do_normalize=normalise, return_attention_mask=True)
    slow = extractor(clips, sampling_rate=16000, padding=True, return_tensors="pt")
    fast = processor.waves(clips)
    torch.testing.assert_close(fast["input_values"], slow["input_values"], atol=1e-5, rtol=1e-5)
    assert torch.equal(fast["audio_attention_mask"].long(), slow["attention_mask"].long())


def test_pooling_against_the_plain_formula() -> None:
    hidden = torch.randn(3, 7, 4)
    mask = torch.arange(7)[None] < torch.tensor([7, 3, 1])[:, None]
    for row, length in enumerate((7, 3, 1)):
        valid = hidden[row, :length]
        assert torch.allclose(pool(hidden, mask, "mean")[row], valid.mean(0), atol=1e-6)
        std = (valid.var(0, unbiased=False) + 1e-6).sqrt()
        expected = torch.cat([valid.mean(0), std])
        assert torch.allclose(pool(hidden, mask, "mean_std")[row], expected, atol=1e-5)
    assert torch.equal(pool(hidden, mask, "cls"), hidden[:, 0])


def test_the_projection_is_the_published_formula() -> None:
    projection = Projection(5, 3, dropout=0.5).eval()
    x = torch.randn(4, 5)
    e1 = x @ projection.linear1.weight.T
    inner = e1 + torch.nn.functional.gelu(e1) @ projection.linear2.weight.T
    expected = (inner - inner.mean(1, keepdim=True)) / (inner.var(1, unbiased=False, keepdim=True) + 1e-5).sqrt()
    assert torch.allclose(projection(x), expected, atol=1e-5)
    assert projection.linear1.bias is None
    assert projection.linear2.bias is None


def test_the_logit_scale_stays_in_its_range(demo_config: ModelConfig) -> None:
    model, _ = build_model(demo_config, TEXTS, 16000, seed=1)
    assert model.logit_scale.item() == pytest.approx(1 / 0.07)
    for wild, kept in ((50.0, 100.0), (-3.0, 1.0)):
        model.log_logit_scale.data.fill_(wild)
        model.clamp_logit_scale()
        assert model.logit_scale.item() == pytest.approx(kept)


def test_the_tokenizer_is_a_function_of_its_texts() -> None:
    made = {train_tokenizer(TEXTS, 128, 64).backend_tokenizer.to_str() for _ in range(5)}
    assert len(made) == 1
    tokenizer = train_tokenizer(TEXTS, 128, 64)
    assert tokenizer.decode(tokenizer("A RASPY man")["input_ids"], skip_special_tokens=True) == "a raspy man"
    assert tokenizer.unk_token_id not in tokenizer("spray")["input_ids"]  # an unseen word falls into pieces


@pytest.mark.parametrize(
    "fault", ["no folder", "other architecture", "truncated weights", "missing weight", "no tokenizer"]
)
def test_a_bad_checkpoint_is_refused_with_its_fault(demo_config: ModelConfig, tmp_path: Path, fault: str) -> None:
    model, processor = build_model(demo_config, TEXTS, 16000, seed=1)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    if fault == "no folder":
        folder, message = tmp_path / "nowhere", "no checkpoint folder"
    else:
        folder, message = tmp_path, "damaged checkpoint"
    if fault == "other architecture":
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "clap"}))
        message = "'clap', not 'paraspeechclap'"
    if fault == "truncated weights":
        weights.write_bytes(weights.read_bytes()[:-1000])
    if fault == "missing weight":
        tensors = load_file(weights)
        del tensors["audio_projection.linear1.weight"]
        save_file(tensors, weights, metadata={"format": "pt"})
        message = "audio_projection.linear1.weight"
    if fault == "no tokenizer":
        (tmp_path / "tokenizer.json").unlink()
        (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(CheckpointError, match=message):
        load_model(folder)


@pytest.mark.parametrize(
    ("part", "key"),
    [(None, "attn_implementation"), ("audio_config", "_attn_implementation"), (None, "quantization_config")],
)
def test_a_config_that_would_load_code_is_refused(
    demo_config: ModelConfig, tmp_path: Path, part: str | None, key: str
) -> None:
    for saved in build_model(demo_config, TEXTS, 16000, seed=1):
        saved.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (config if part is None else config[part])[key] = "someone/kernels"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=f"asks for {key}, which may load code"):
        load_model(tmp_path)


@pytest.mark.parametrize("content", ["[1]", '"text"', "{", "{}", '{"model_type": "bert"}'])
def test_a_config_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"no readable config\.json|holds a model of type 'bert'"):
        load_model(tmp_path)


def test_weights_may_not_lie_elsewhere(demo_config: ModelConfig, tmp_path: Path) -> None:
    for saved in build_model(demo_config, TEXTS, 16000, seed=1):
        saved.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").rename(tmp_path / "outside.safetensors")
    names = dict.fromkeys(load_file(tmp_path / "outside.safetensors"), "../outside.safetensors")
    index = tmp_path / "model" / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with pytest.raises(CheckpointError, match=r"names files outside its folder \(\.\./outside\.safetensors\)"):
        load_model(tmp_path / "model")


def test_a_folder_of_an_older_feature_extractor_is_named(demo_config: ModelConfig, tmp_path: Path) -> None:
    model, processor = build_model(demo_config, TEXTS, 16000, seed=1)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "processor_config.json").read_text())
    settings["feature_extractor"] = Wav2Vec2FeatureExtractor().to_dict()
    (tmp_path / "processor_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="written by an older psclap, with a Wav2Vec2FeatureExtractor"):
        load_model(tmp_path)
