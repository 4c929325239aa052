"""Griffin-Lim, and HiFi-GANs through transformers' classes: real folders and a real Hub cache, small networks."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file
from test_mel import sound
from transformers import (
    FastSpeech2ConformerHifiGan,
    FastSpeech2ConformerHifiGanConfig,
    PreTrainedModel,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
)

from psclap.errors import CheckpointError, PsclapError
from psclap.tts.mel import ESPNET_LJSPEECH, LJSPEECH, SPEECHT5, MelConfig, MelSpectrogram
from psclap.tts.vocoder import load_vocoder

SMALL = {"upsample_initial_channel": 16, "resblock_kernel_sizes": [3], "resblock_dilation_sizes": [[1, 3]]}


def small_hifigan(folder: Path, model_class: type[PreTrainedModel] = SpeechT5HifiGan, **config: Any) -> PreTrainedModel:
    """Writes a HiFi-GAN whose mean and scale are not 0 and 1."""
    configs = {
        SpeechT5HifiGan: SpeechT5HifiGanConfig,
        FastSpeech2ConformerHifiGan: FastSpeech2ConformerHifiGanConfig,
    }
    torch.manual_seed(1)
    model = model_class(configs[model_class](**SMALL | config)).eval()
    with torch.no_grad():
        model.mean.copy_(torch.linspace(-5, -2, 80))
        model.scale.copy_(torch.linspace(0.5, 2, 80))
        for parameter in model.parameters():  # fresh weights are so small that everything sounds like silence
            if parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
    model.save_pretrained(folder)
    return model


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def log_mels(config: MelConfig = SPEECHT5) -> torch.Tensor:
    return MelSpectrogram(config)(torch.from_numpy(sound(8000, config.sample_rate_hz)))


def mel_error(wave: torch.Tensor, log_mel: torch.Tensor, config: MelConfig) -> float:
    """Of the wave's mels from those it was made of, the mean in natural logarithms; below -10 all is silence."""
    again = MelSpectrogram(config)(wave)[: len(log_mel)]
    in_e = 1 if config.log == "e" else math.log(10)
    heard = [(mels * in_e).clamp(min=-10) for mels in (again, log_mel[: len(again)])]
    return float((heard[0] - heard[1]).abs().mean())


@pytest.mark.parametrize(
    "config", [SPEECHT5, LJSPEECH, MelConfig(fft_length=1024, window_length=800, hop_length=200, padding="zero")]
)
def test_griffin_lims_sound_has_the_mels_it_was_made_of(config: MelConfig) -> None:
    wave = torch.from_numpy(sound(8000, config.sample_rate_hz))
    log_mel = MelSpectrogram(config)(wave)
    vocoder = load_vocoder("griffin-lim", config)
    made = vocoder(log_mel)
    assert made.shape == (len(log_mel) * config.hop_length,)
    assert made.dtype == torch.float32
    error = mel_error(made, log_mel, config)
    rough = mel_error(load_vocoder("griffin-lim", config, iterations=2)(log_mel), log_mel, config)
    noise = mel_error(0.1 * torch.randn(len(made)), log_mel, config)
    assert error < 0.3 < rough < noise


def test_griffin_lim_is_deterministic_and_a_batch_changes_nothing() -> None:
    vocoder = load_vocoder("griffin-lim", SPEECHT5, iterations=4)
    log_mel = log_mels()
    alone = vocoder(log_mel)
    assert torch.equal(vocoder(log_mel), alone)
    batch = vocoder(torch.stack([log_mel.flip(0), log_mel]))
    torch.testing.assert_close(batch[1], alone, atol=1e-4, rtol=1e-3)


def test_griffin_lim_of_silence_is_silent_and_of_the_impossible_is_bounded() -> None:
    vocoder = load_vocoder("griffin-lim", SPEECHT5, iterations=3)
    assert vocoder(torch.full((9, 80), -10.0)).abs().max() < 1e-6
    assert vocoder(torch.full((9, 80), -300.0)).abs().max() < 1e-6
    loud = vocoder(torch.full((9, 80), 300.0))
    assert loud.isfinite().all()
    assert loud.abs().max() <= 1


def test_griffin_lim_needs_frames_that_overlap_and_an_iteration() -> None:
    with pytest.raises(PsclapError, match="hop_length 600: Griffin-Lim needs half of window_length 1024"):
        load_vocoder("griffin-lim", MelConfig(hop_length=600))
    with pytest.raises(PsclapError, match="0 iterations"):
        load_vocoder("griffin-lim", SPEECHT5, iterations=0)


@pytest.mark.parametrize(
    ("shape", "message"),
    [((80,), r"shape \(80,\)"), ((5, 64), r"\(frames, 80\)"), ((0, 80), "one frame"), ((1, 1, 5, 80), "shape")],
)
def test_a_vocoder_refuses_what_is_no_mel(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(PsclapError, match=message):
        load_vocoder("griffin-lim", SPEECHT5)(torch.zeros(shape))


def test_a_vocoder_refuses_values_that_are_not_finite() -> None:
    with pytest.raises(PsclapError, match="not finite"):
        load_vocoder("griffin-lim", SPEECHT5)(torch.full((3, 80), float("nan")))


@pytest.mark.parametrize(
    ("model_class", "mel"), [(SpeechT5HifiGan, SPEECHT5), (FastSpeech2ConformerHifiGan, ESPNET_LJSPEECH)]
)
@pytest.mark.parametrize("normalises", [True, False])
def test_a_folder_gives_what_its_class_gives(
    tmp_path: Path, model_class: type[PreTrainedModel], mel: MelConfig, normalises: bool
) -> None:
    """mean and scale included, where its config says so."""
    theirs = small_hifigan(
        tmp_path, model_class, mel=mel.to_dict(), sampling_rate=mel.sample_rate_hz, normalize_before=normalises
    )
    vocoder = load_vocoder(str(tmp_path), mel)
    log_mel = log_mels(mel)
    with torch.no_grad():
        expected = theirs(log_mel)
        unnormalised = theirs(log_mel * theirs.scale + theirs.mean)
    made = vocoder(log_mel)
    assert torch.equal(made, expected)
    batch = vocoder(torch.stack([log_mel.flip(0), log_mel]))
    torch.testing.assert_close(batch[1], expected, atol=1e-5, rtol=1e-4)
    assert made.std() > 0.01
    assert made.shape == (len(log_mel) * 256,)
    assert (unnormalised - made).abs().max() > 0.01
    assert not made.requires_grad


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The Hub's cache, offline, with the published vocoders as they are there: no safetensors, model_type hifigan."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name, model_class in (
        ("microsoft/speecht5_hifigan", SpeechT5HifiGan),
        ("espnet/fastspeech2_conformer_hifigan", FastSpeech2ConformerHifiGan),
    ):
        repository = tmp_path / f"models--{name.replace('/', '--')}"
        folder = repository / "snapshots" / ("a" * 40)
        small_hifigan(folder, model_class)
        torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
        (folder / "model.safetensors").unlink()
        edit_config(folder, model_type="hifigan")
        (repository / "refs").mkdir()
        (repository / "refs" / "main").write_text("a" * 40)
    return tmp_path


def test_published_vocoders_come_by_name_with_their_known_definition(hub: Path) -> None:
    log_mel = log_mels()
    folder = next(hub.glob("models--microsoft*/snapshots/*"))
    with torch.no_grad():
        expected = SpeechT5HifiGan.from_pretrained(folder)(log_mel)
    assert torch.equal(load_vocoder("microsoft/speecht5_hifigan", SPEECHT5)(log_mel), expected)
    assert torch.equal(load_vocoder("microsoft/speecht5_hifigan@main", SPEECHT5)(log_mel), expected)
    with pytest.raises(PsclapError, match="normalised by the statistics"):
        load_vocoder("espnet/fastspeech2_conformer_hifigan", ESPNET_LJSPEECH)
    with pytest.raises(PsclapError, match="nobody/nothing is no checkpoint folder here"):
        load_vocoder("nobody/nothing", SPEECHT5)


def test_another_definition_is_refused_with_each_value_that_differs(tmp_path: Path) -> None:
    small_hifigan(tmp_path, mel=SPEECHT5.to_dict())
    with pytest.raises(PsclapError) as refused:
        load_vocoder(str(tmp_path), LJSPEECH)
    for words in (
        "sample_rate_hz 16000 (the model: 22050)",
        "min_hz 80.0 (the model: 0.0)",
        "max_hz 7600.0 (the model: 8000.0)",
        "centred_on hop_start (the model: hop_middle)",
        "griffin-lim",
    ):
        assert words in str(refused.value)
    assert "fft_length" not in str(refused.value)
    assert "log" not in str(refused.value)  # a factor


def test_logarithm_and_floor_are_converted(tmp_path: Path) -> None:
    """The sound is that of the vocoder's own mels of the same wave, exactly so where its floor is the higher one."""
    own = replace(SPEECHT5, log="e", floor=1e-4)
    model = small_hifigan(tmp_path, mel=own.to_dict())
    with torch.no_grad():
        expected = model(log_mels(own))
    torch.testing.assert_close(load_vocoder(str(tmp_path), SPEECHT5)(log_mels()), expected, atol=1e-4, rtol=1e-3)


def test_a_models_floor_may_be_above_the_vocoders_while_it_is_inaudible(tmp_path: Path) -> None:
    model = small_hifigan(tmp_path, mel=SPEECHT5.to_dict())
    coarse = replace(SPEECHT5, floor=1e-5)
    with torch.no_grad():
        expected = model(log_mels().clamp(min=-5))
    torch.testing.assert_close(load_vocoder(str(tmp_path), coarse)(log_mels(coarse)), expected)
    with pytest.raises(PsclapError, match=r"other mels than the model makes: floor 1e-10 \(the model: 0.01\)"):
        load_vocoder(str(tmp_path), replace(SPEECHT5, floor=1e-2))


def test_a_folder_that_does_not_say_its_mels_is_refused_with_the_way_out(tmp_path: Path) -> None:
    model = small_hifigan(tmp_path)
    with pytest.raises(PsclapError, match="does not say which mels it takes") as refused:
        load_vocoder(str(tmp_path), SPEECHT5)
    said = json.loads(str(refused.value).split("such as ")[1])
    edit_config(tmp_path, **said)
    with torch.no_grad():
        assert torch.equal(load_vocoder(str(tmp_path), SPEECHT5)(log_mels()), model(log_mels()))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mel": {"hop": 256}}, "config.json: mel.hop: unknown key"),
        ({"mel": "mine"}, "is not a section"),
        ({"mel": SPEECHT5.to_dict(), "architectures": ["BertModel"]}, "architecture BertModel; vocoders are"),
        ({"mel": SPEECHT5.to_dict(), "architectures": None}, "architecture none"),
        ({"mel": SPEECHT5.to_dict(), "upsample_initial_channel": 32}, "cannot be loaded|weights do not fit"),
        ({"mel": SPEECHT5.to_dict(), "resblock_dilation_sizes": [[1]]}, "weights do not fit its config.json: resb"),
        ({"mel": SPEECHT5.to_dict(), "sampling_rate": 22050}, "has sample_rate_hz 16000, and its network"),
        ({"mel": SPEECHT5.to_dict(), "upsample_rates": [4, 4, 4, 2]}, "hop_length 256, and its network"),
    ],
)
def test_a_broken_folder_is_refused(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    small_hifigan(tmp_path)
    edit_config(tmp_path, **changes)
    with pytest.raises(PsclapError, match=message):
        load_vocoder(str(tmp_path), SPEECHT5)


def test_what_is_no_vocoder_at_all_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere is no vocoder: its config\.json cannot be read"):
        load_vocoder(str(tmp_path / "nowhere"), SPEECHT5)
    (tmp_path / "config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match=r"its config\.json cannot be read"):
        load_vocoder(str(tmp_path), SPEECHT5)
    small_hifigan(tmp_path, mel=SPEECHT5.to_dict())
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_vocoder(str(tmp_path), SPEECHT5)


def test_a_pickle_with_code_is_not_run(tmp_path: Path) -> None:
    small_hifigan(tmp_path, mel=SPEECHT5.to_dict())
    (tmp_path / "model.safetensors").unlink()
    trace = tmp_path / "ran"
    torch.save({"mean": _Touch(trace), "other": np.zeros(1)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_vocoder(str(tmp_path), SPEECHT5)
    assert not trace.exists()


class _Touch:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)
