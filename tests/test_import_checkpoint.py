"""`psclap import-checkpoint`: a small release under the published names, against its own plain computation."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from commands import psclap
from conftest import WAVLM
from published import Release, random_projection
from safetensors.torch import save_file
from transformers import AutoModel, WavLMConfig, XLMRobertaConfig

from psclap.embedding import Embedder
from psclap.errors import PsclapError
from psclap.models.import_checkpoint import import_checkpoint
from psclap.models.tokenizer import train_tokenizer

CAPTIONS = ("A husky man.", "A British woman speaks slowly, and in a rather deep voice.", "Who is it?")
XLM_R = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 96}
State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Released:
    """A release, and folders that name its encoders without holding their weights."""

    model: Release
    speech_encoder: Path
    text_encoder: Path

    @property
    def encoders(self) -> tuple[str, str]:
        return str(self.speech_encoder), str(self.text_encoder)


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Released:
    folder = tmp_path_factory.mktemp("encoders")
    tokenizer = train_tokenizer(CAPTIONS, 256, max_tokens=64)
    tokenizer.save_pretrained(folder / "text")
    positions = {"max_position_embeddings": 70, "pad_token_id": tokenizer.pad_token_id, "initializer_range": 0.3}
    text_config = XLMRobertaConfig(vocab_size=len(tokenizer), **XLM_R, **positions)
    speech_config = WavLMConfig(**WAVLM)
    text_config.save_pretrained(folder / "text")
    speech_config.save_pretrained(folder / "speech")
    torch.manual_seed(3)
    model = Release(
        AutoModel.from_config(speech_config),
        AutoModel.from_config(text_config),
        random_projection(WAVLM["hidden_size"], 768),
        random_projection(XLM_R["hidden_size"], 768),
        torch.tensor(math.log(31.0)),
    )
    for parameter in (*model.wavlm.parameters(), *model.xlm_r.parameters()):
        parameter.data += 0.05 * torch.randn_like(parameter)
    return Released(model, folder / "speech", folder / "text")


def saved(state: Any, path: Path, **options: Any) -> Path:
    torch.save(state, path, **options)
    return path


def renamed(state: State, *pairs: tuple[str, str]) -> State:
    for old, new in pairs:
        state = {key.replace(old, new): tensor for key, tensor in state.items()}
    return state


NEW_NAMES = ("parametrizations.weight.original0", "parametrizations.weight.original1")
OLDER_NAMES = tuple(zip(NEW_NAMES, ("weight_g", "weight_v"), strict=True))


def check_equal_embeddings(released: Released, folder: Path) -> None:
    """Clips of mixed lengths and captions, each in one padded batch."""
    embedder = Embedder(folder)
    rng = np.random.default_rng(0)
    clips = [rng.normal(0.1, 0.3, length).astype(np.float32) for length in (9000, 5000, 16000, 7001, 700)]
    expected = np.stack([released.model.speech_embedding(clip) for clip in clips])
    np.testing.assert_allclose(embedder.embed_audio(clips), expected, rtol=0, atol=1e-5)
    ids = [embedder.processor.tokenizer(caption)["input_ids"] for caption in CAPTIONS]
    expected = np.stack([released.model.text_embedding(tokens) for tokens in ids])
    np.testing.assert_allclose(embedder.embed_text(CAPTIONS), expected, rtol=0, atol=1e-5)


def test_the_command_imports_what_the_release_computes(released: Released, tmp_path: Path) -> None:
    file = saved(released.model.state_dict(), tmp_path / "paraspeechclap-intrinsic.pth.tar")
    speech, text = released.encoders
    out = tmp_path / "model"
    result = psclap(
        *("import-checkpoint", file, "--variant", "intrinsic", out),
        *("--speech-encoder", speech, "--text-encoder", text),
    )
    assert (result.returncode, result.stderr) == (0, "")
    assert f"{out}: " in result.stdout
    left_out = [line for line in result.stdout.splitlines() if line.startswith("left out")]
    assert [line.rsplit(" ", 1)[1] for line in left_out] == [
        f"text_branch.base.pooler.dense.{name}" for name in ("bias", "weight")
    ]
    check_equal_embeddings(released, out)
    assert json.loads((out / "config.json").read_text())["variant"] == "intrinsic"
    embedder = Embedder(out)
    assert embedder.model.logit_scale.item() == pytest.approx(31.0)
    assert (embedder.sample_rate_hz, embedder.processor.feature_extractor.do_normalize) == (16000, True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", file.name]


OTHER_FORMS: dict[str, Callable[[State], State]] = {
    "older names of weight norm": lambda state: renamed(state, *OLDER_NAMES),
    "older transformers' buffers": lambda state: state | {"text_branch.base.embeddings.position_ids": torch.arange(70)},
    "not contiguous": lambda state: {key: turned(tensor) for key, tensor in state.items()},
    "one storage": lambda state: dict(zip(state, in_one_storage(list(state.values())), strict=True)),
}


def turned(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.T.contiguous().T if tensor.ndim == 2 else tensor


def in_one_storage(tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    parts = torch.cat([tensor.flatten() for tensor in tensors]).split([tensor.numel() for tensor in tensors])
    return [part.view(tensor.shape) for part, tensor in zip(parts, tensors, strict=True)]


@pytest.mark.parametrize("form", [*OTHER_FORMS, "older format of torch"])
def test_other_forms_of_the_same_release(released: Released, tmp_path: Path, form: str) -> None:
    change = OTHER_FORMS.get(form, dict)
    options = {"_use_new_zipfile_serialization": False} if form == "older format of torch" else {}
    file = saved(change(released.model.state_dict()), tmp_path / "release.pth.tar", **options)
    imported = import_checkpoint(file, tmp_path / "model", "combined", *released.encoders)
    assert imported.converted == {}
    assert ("text_branch.base.embeddings.position_ids" in imported.left_out) == ("buffers" in form)
    check_equal_embeddings(released, tmp_path / "model")


def test_other_types_become_float32_and_are_said(released: Released, tmp_path: Path) -> None:
    state = {key: tensor.to(torch.bfloat16) for key, tensor in released.model.state_dict().items()}
    state["log_logit_scale"] = state["log_logit_scale"].double()
    imported = import_checkpoint(saved(state, tmp_path / "x.pth"), tmp_path / "model", "combined", *released.encoders)
    assert imported.converted == {"bfloat16": imported.num_tensors - 1, "float64": 1}
    model = Embedder(tmp_path / "model").model
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    expected = released.model.text_projection["linear1.weight"].to(torch.bfloat16).float()
    assert torch.equal(model.text_projection.linear1.weight.cpu(), expected)


def refused(released: Released, file: Path, match: str) -> str:
    """The message; the folder of the file must hold nothing more afterwards than before."""
    before = sorted(file.parent.iterdir())
    with pytest.raises(PsclapError, match=match) as error:
        import_checkpoint(file, file.parent / "model", "intrinsic", *released.encoders)
    assert sorted(file.parent.iterdir()) == before
    return str(error.value)


def test_one_tensor_under_two_names_is_taken_twice(released: Released, tmp_path: Path) -> None:
    state = released.model.state_dict()
    names = [f"{tower}_projection.layer_norm.weight" for tower in ("audio", "text")]
    state |= dict.fromkeys(names, state[names[0]])
    import_checkpoint(saved(state, tmp_path / "x.pth.tar"), tmp_path / "model", "combined", *released.encoders)
    model = Embedder(tmp_path / "model").model
    for norm in (model.audio_projection.layer_norm, model.text_projection.layer_norm):
        assert torch.equal(norm.weight.cpu(), state[names[0]])


def test_numbers_that_are_none_are_refused(released: Released, tmp_path: Path) -> None:
    state = released.model.state_dict() | {"log_logit_scale": torch.tensor(float("nan"))}
    message = refused(released, saved(state, tmp_path / "x.pth.tar"), "does not fit")
    assert message.splitlines()[1:] == ["not finite (1):", "  log_logit_scale (scalar)"]


def test_every_key_that_does_not_fit_is_listed(released: Released, tmp_path: Path) -> None:
    state = released.model.state_dict()
    for layer in range(2):
        del state[f"audio_branch.base.encoder.layers.{layer}.attention.k_proj.weight"]
    del state["text_projection.layer_norm.bias"]
    state["text_branch.base.lm_head.weight"] = torch.zeros(7, 5)
    state["audio_model.encoder.layer_norm.bias"] = torch.zeros(32)  # a name of ours, not of the release
    state["audio_projection.linear1.weight"] = torch.zeros(768, 31)
    state["log_logit_scale"] = torch.zeros((), dtype=torch.int64)
    state |= renamed({key: value for key, value in state.items() if key.endswith("original0")}, OLDER_NAMES[0])
    message = refused(released, saved(state, tmp_path / "x.pth.tar"), "does not fit")
    positions = "audio_branch.base.encoder.pos_conv_embed.conv"
    assert message.splitlines()[1:] == [
        "missing (3):",
        "  audio_branch.base.encoder.layers.*.attention.k_proj.weight (32x32), * = 0-1",
        "  text_projection.layer_norm.bias (768)",
        "not of dense floating-point numbers (1):",
        "  log_logit_scale (int64, strided)",
        "of the wrong shape (1):",
        "  audio_projection.linear1.weight (768x31 instead of 768x32)",
        "there twice, by its older and its newer name (1):",
        f"  {positions}.weight_g (1x1x8)",
        "unexpected (2):",
        "  audio_model.encoder.layer_norm.bias (32)",
        "  text_branch.base.lm_head.weight (7x5)",
    ]


class _Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("was-run",)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older format"])
def test_code_is_refused_and_not_run(
    released: Released, tmp_path: Path, zipped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    state = released.model.state_dict() | {"log_logit_scale": _Code()}
    file = saved(state, tmp_path / "x.pth.tar", _use_new_zipfile_serialization=zipped)
    assert "posix.mkdir" in refused(released, file, "holds code")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "older format"])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
def test_truncated_files_are_refused(released: Released, tmp_path: Path, share: float, zipped: bool) -> None:
    file = saved(released.model.state_dict(), tmp_path / "x.pth.tar", _use_new_zipfile_serialization=zipped)
    os.truncate(file, int(share * file.stat().st_size))
    refused(released, file, "truncated")


def test_what_is_no_state_dict_is_refused(released: Released, tmp_path: Path) -> None:
    state = released.model.state_dict()
    refused(released, saved(list(state.values()), tmp_path / "list.pth"), "holds a list, not a state_dict")
    refused(released, saved({"epoch": 3, "state_dict": state}, tmp_path / "nested.pth"), "'epoch', 'state_dict'")
    refused(released, saved({}, tmp_path / "empty.pth"), "holds nothing")
    save_file({key: tensor.contiguous() for key, tensor in state.items()}, tmp_path / "safe.pth")
    refused(released, tmp_path / "safe.pth", "is a safetensors file")
    refused(released, tmp_path / "nowhere.pth", "No such file")
    (tmp_path / "folder.pth").mkdir()
    refused(released, tmp_path / "folder.pth", "Is a directory")


def test_encoders_that_do_not_fit_are_refused(released: Released, tmp_path: Path) -> None:
    file = saved(released.model.state_dict(), tmp_path / "x.pth.tar")
    speech, text = released.encoders
    with pytest.raises(PsclapError, match="cannot be loaded"):
        import_checkpoint(file, tmp_path / "model", "intrinsic", str(tmp_path / "nowhere"), text)
    with pytest.raises(
        PsclapError, match=r"layer\.\*\.attention\.self\.key"
    ):  # a text model in the speech encoder's place
        import_checkpoint(file, tmp_path / "model", "intrinsic", text, text)
    other = tmp_path / "text"
    train_tokenizer(CAPTIONS, 256, max_tokens=64).save_pretrained(other)
    XLMRobertaConfig(vocab_size=9, max_position_embeddings=70, **XLM_R).save_pretrained(other)
    with pytest.raises(PsclapError, match=r"its config\.json only 9"):
        import_checkpoint(file, tmp_path / "model", "intrinsic", speech, str(other))
    assert not (tmp_path / "model").exists()


def test_an_existing_folder_is_left_as_it_is(released: Released, tmp_path: Path) -> None:
    file = saved(released.model.state_dict(), tmp_path / "x.pth.tar")
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "mine").write_text("kept")
    result = psclap(
        *("import-checkpoint", file, tmp_path / "model", "--variant", "intrinsic"),
        *("--speech-encoder", released.speech_encoder, "--text-encoder", released.text_encoder),
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert "nothing is overwritten" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert (tmp_path / "model" / "mine").read_text() == "kept"
