"""HiFi-GAN in training: its losses as one, segments of clips, the real loop, and the vocoder that comes of it."""

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_training import at, losses, run
from small_vocoder import CONFIG, batch_of_rank, train_config, vocoder_task, vocoder_training
from tasks import relative_error
from test_mel import sound
from test_training import same_files
from test_vocoder import log_mels, small_hifigan
from transformers import SpeechT5HifiGan

from psclap.errors import CheckpointError, ConfigError, PsclapError
from psclap.loop_config import CheckpointConfig, ComputeConfig, SamplingConfig
from psclap.shards.index import ShardIndex
from psclap.strict import from_mapping
from psclap.training.loop import check_training
from psclap.tts.discriminators import Discriminators, PeriodDiscriminator
from psclap.tts.gan_losses import discriminator_loss, feature_matching, generator_loss
from psclap.tts.hifigan import VocoderGAN, VocoderGANConfig, build_gan, export_generator
from psclap.tts.mel import LJSPEECH, SPEECHT5, MelConfig, MelSpectrogram
from psclap.tts.vocoder import load_vocoder
from psclap.tts.vocoder_batch import MelFolder, SegmentCollator
from psclap.tts.vocoder_settings import DiscriminatorConfig, GeneratorConfig, VocoderConfig

# --- discriminators and losses -----------------------------------------------------------------------------------


def test_the_published_discriminators_have_their_size() -> None:
    """70.7 million parameters (those of jik876/hifi-gan), 5 periods and 3 scales."""
    discriminators = Discriminators()
    assert sum(parameter.numel() for parameter in discriminators.parameters()) == 70_724_591
    scores = [layers[-1] for layers in discriminators(torch.zeros(1, 2048))]
    assert [score.shape[-1] for score in scores] == [2, 3, 5, 7, 11, 32, 17, 9]


def test_a_period_discriminator_sees_each_column_alone() -> None:
    wave = torch.randn(1, 60, requires_grad=True)
    layers = PeriodDiscriminator(5, (4, 8))(wave)
    assert [layer.shape[-1] for layer in layers] == [5, 5, 5]
    (gradient,) = torch.autograd.grad(layers[-1][..., 2].sum(), wave)
    assert set(np.flatnonzero(gradient[0].numpy()) % 5) == {2}


def slow_gradients(task: Any, batch: Any) -> dict[str, torch.Tensor]:
    """By two optimisers' steps, as published: discriminators on what is made, detached; then the generator."""
    model, names = task.model, [name for name, _ in task.model.named_parameters()]

    def gradients(loss: torch.Tensor, of: str) -> dict[str, torch.Tensor]:
        model.zero_grad()
        loss.backward()
        return {name: model.get_parameter(name).grad.clone() for name in names if name.startswith(of)}

    made = model(batch.log_mel)
    real_seen, made_seen = model.discriminators(batch.wave), model.discriminators(made.detach())
    of_discriminators = gradients(discriminator_loss(real_seen, made_seen), "discriminators")
    real_seen, made_seen = model.discriminators(batch.wave), model.discriminators(made)
    mel = (task.heard(made) - task.heard(batch.wave)).abs().mean()
    total = generator_loss(made_seen) + 2 * feature_matching(real_seen, made_seen) + 45 * mel
    return of_discriminators | gradients(total, "generator")


def test_one_total_gives_each_parameter_the_gradient_of_its_own_loss() -> None:
    """In eval, where spectral norm does not count how often it is asked. The losses are summed in float32."""
    task = vocoder_task().eval().double()
    batch = batch_of_rank(task)
    batch = replace(batch, wave=batch.wave.double(), log_mel=batch.log_mel.double())
    expected = slow_gradients(copy.deepcopy(task), batch)
    found = task(batch)
    found.total.backward()
    for network in ("generator", "discriminators"):
        of_network = {name: gradient for name, gradient in expected.items() if name.startswith(network)}
        got = {name: task.model.get_parameter(name).grad for name in of_network}
        assert relative_error(got, of_network) < 1e-6
        assert all(gradient.abs().max() > 0 for gradient in of_network.values())
    parts = found.report
    summed = parts["discriminator"] + parts["generator"] + 2 * parts["features"] + 45 * parts["mel"]
    assert found.total.item() == pytest.approx(float(summed))


def test_a_clip_whose_sound_is_not_finite_is_known() -> None:
    task = vocoder_task()
    batch = batch_of_rank(task)
    batch.log_mel[2, 1] = float("nan")
    assert task(batch).is_finite.tolist() == [True, True, False, True]


# --- segments ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mel", [SPEECHT5, LJSPEECH])
@pytest.mark.parametrize("num_samples", [2048, 2100, 7777, 20000])
def test_a_segments_mels_are_those_of_the_clip_where_its_wave_is(mel: MelConfig, num_samples: int) -> None:
    wave = np.random.default_rng(0).normal(0, 0.1, num_samples).astype(np.float32)
    of_clip = MelSpectrogram(mel)(torch.from_numpy(wave))
    collator = SegmentCollator(mel, 2048)
    starts = set()
    for seed in range(30):
        segment = collator.example({}, wave, np.random.default_rng(seed))
        windows = np.lib.stride_tricks.sliding_window_view(wave, 2048)[::256]
        (start,) = np.flatnonzero((windows == segment.wave.numpy()).all(1))
        torch.testing.assert_close(segment.log_mel, of_clip[start : start + 8], atol=1e-4, rtol=1e-4)
        starts.add(int(start))
    last = num_samples // 256 - 8
    assert {0, last} <= starts if last < 9 else len(starts) > 9


def test_a_clip_shorter_than_a_segment_ends_in_silence() -> None:
    wave = sound(1500)
    segment = SegmentCollator(SPEECHT5, 2048).example({}, wave, np.random.default_rng(0))
    assert np.array_equal(segment.wave[:1500], wave)
    assert not segment.wave[1500:].any()
    assert segment.log_mel.shape == (8, 80)
    predicted = np.random.default_rng(1).normal(size=(SPEECHT5.frames(1500), 80)).astype(np.float16)
    segment = SegmentCollator(SPEECHT5, 2048, lambda row: predicted).example({}, wave, np.random.default_rng(0))
    assert torch.equal(segment.log_mel[:6], torch.from_numpy(predicted).float())
    assert (segment.log_mel[6:] == SPEECHT5.log_floor).all()


def test_predicted_mels_come_with_the_wave_of_their_place(tmp_path: Path) -> None:
    wave = sound(20000)
    numbered = np.repeat(np.arange(SPEECHT5.frames(20000), dtype=np.float32)[:, None], 80, 1)
    np.save(tmp_path / "clip-1.npy", numbered)
    collator = SegmentCollator(SPEECHT5, 2048, MelFolder(tmp_path))
    segment = collator.example({"key": "clip-1"}, wave, np.random.default_rng(5))
    first = int(segment.log_mel[0, 0])
    assert first > 0
    assert segment.log_mel[:, 0].tolist() == [*range(first, first + 8)]
    assert np.array_equal(segment.wave, wave[first * 256 : first * 256 + 2048])


def test_predicted_mels_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    collator, rng = SegmentCollator(SPEECHT5, 2048, MelFolder(tmp_path)), np.random.default_rng(0)
    with pytest.raises(PsclapError, match=r"a\.npy cannot be read.*make them again"):
        collator.example({"key": "a"}, sound(5000), rng)
    np.save(tmp_path / "a.npy", np.zeros((30, 80)))
    with pytest.raises(PsclapError, match=r"'a'.*\(30, 80\).*\(20, 80\).*max_crop_s above the longest clip"):
        collator.example({"key": "a"}, sound(5000), rng)
    np.save(tmp_path / "a.npy", np.full((20, 80), np.nan))
    with pytest.raises(PsclapError, match="not finite"):
        collator.example({"key": "a"}, sound(5000), rng)
    np.save(tmp_path / "a.npy", np.array([{"code": 1}], object))
    with pytest.raises(PsclapError, match="cannot be read"):
        collator.example({"key": "a"}, sound(5000), rng)


# --- through the loop --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(mini_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of 4 steps, with averaged weights and a checkpoint at each; not to be changed."""
    folder = tmp_path_factory.mktemp("vocoder")
    run(vocoder_training(mini_shards, ema_decay=0.5, checkpoints=CheckpointConfig(every_steps=1)), folder)
    return folder


def test_resume_ends_bit_identical(mini_shards: Path, trained: Path, tmp_path: Path) -> None:
    """Discriminators with their spectral norm, both optimisers' states and averaged weights among it."""
    training = vocoder_training(mini_shards, ema_decay=0.5, checkpoints=CheckpointConfig(every_steps=1))
    resumed = run(training, tmp_path, at(trained, 1))
    assert len(losses(resumed)) == 3
    same_files(at(trained, 4), at(tmp_path, 4))


def test_every_part_of_the_gan_learns(trained: Path) -> None:
    first, last = (load_file(at(trained, step) / "model.safetensors") for step in (1, 4))
    for name, weight in first.items():
        if not name.endswith((".mean", ".scale", "._u")):
            assert not torch.equal(weight, last[name]), name
    assert {name.split(".")[0] for name in first} == {"generator", "discriminators"}


def test_the_exported_vocoder_sounds_as_the_trained_generator(trained: Path, tmp_path: Path) -> None:
    export_generator(at(trained, 4), tmp_path / "vocoder")
    gan = VocoderGAN(VocoderGANConfig.from_pretrained(at(trained, 4))).eval()
    gan.load_state_dict(load_file(at(trained, 4) / "model.safetensors"))
    log_mel = log_mels()
    with torch.no_grad():
        expected = gan(log_mel[None])[0]
    made = load_vocoder(str(tmp_path / "vocoder"), SPEECHT5)(log_mel)
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-6)
    theirs = SpeechT5HifiGan.from_pretrained(tmp_path / "vocoder")
    assert torch.equal(theirs(log_mel).detach(), made)
    config = json.loads((tmp_path / "vocoder" / "config.json").read_text())
    assert MelConfig.from_dict(config["mel"]) == SPEECHT5
    with pytest.raises(PsclapError, match="max_hz 7600"):
        load_vocoder(str(tmp_path / "vocoder"), replace(SPEECHT5, max_hz=8000.0))


def test_a_checkpoint_is_no_vocoder_and_a_vocoder_no_checkpoint(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(PsclapError, match=r"architecture VocoderGAN; .*export_generator"):
        load_vocoder(str(at(trained, 4)), SPEECHT5)
    small_hifigan(tmp_path / "vocoder")
    for folder in (tmp_path / "vocoder", tmp_path / "nowhere"):
        with pytest.raises(CheckpointError, match=f"{folder.name} is no checkpoint of a vocoder's training"):
            export_generator(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(PsclapError, match="nothing is overwritten"):
        export_generator(at(trained, 4), tmp_path / "vocoder")


def test_training_lowers_the_error_of_the_mels(mini_shards: Path, tmp_path: Path) -> None:
    told = run(vocoder_training(mini_shards, max_steps=24, validate_every=12, learning_rate=2e-3), tmp_path)
    before, after = (metrics["val/mel_l1"] for _, metrics in told.logged if "val/mel_l1" in metrics)
    first = next(metrics["loss/mel"] for _, metrics in told.logged)
    assert after < before < first


def test_a_vocoder_is_tuned_to_predicted_mels(mini_shards: Path, tmp_path: Path) -> None:
    """From a published one's weights and statistics, which it sounds like at its start."""
    published = small_hifigan(tmp_path / "published", mel=SPEECHT5.to_dict())
    config = replace(CONFIG, start_from=str(tmp_path / "published"))
    gan = build_gan(config, seed=1).eval()
    log_mel = log_mels()
    with torch.no_grad():
        torch.testing.assert_close(gan(log_mel[None])[0], published(log_mel), rtol=1e-3, atol=1e-5)

    index, rng = ShardIndex(mini_shards), np.random.default_rng(0)
    for row in [*index.rows_of("train"), *index.rows_of("val")]:
        frames = SPEECHT5.frames(int(index.num_samples[row]))
        np.save(tmp_path / f"{index.row(int(row))['key']}.npy", rng.normal(-4, 1, (frames, 80)).astype(np.float16))
    changes: dict[str, Any] = {"predicted_mels": str(tmp_path), "max_crop_s": 60.0, "max_steps": 2}
    told = run(vocoder_training(mini_shards, config, **changes), tmp_path / "store")
    assert len(losses(told)) == 2
    with pytest.raises(PsclapError, match="set max_crop_s above the longest clip"):
        run(vocoder_training(mini_shards, config, **changes | {"max_crop_s": 0.3}), tmp_path / "cropped")


def test_a_start_of_other_mels_is_refused(tmp_path: Path) -> None:
    small_hifigan(tmp_path, mel=replace(SPEECHT5, log="e").to_dict())
    with pytest.raises(PsclapError, match=r"log e \(the model: 10\)"):
        build_gan(replace(CONFIG, start_from=str(tmp_path)), seed=1)


@pytest.mark.parametrize(
    ("vocoder", "changes", "message"),
    [
        (
            replace(CONFIG, mel=replace(SPEECHT5, sample_rate_hz=22050)),
            {},
            "sample_rate_hz 22050: the shards have 16000",
        ),
        (CONFIG, {"segment_length": 2000}, "segment_length 2000 must be a multiple of mel.hop_length 256"),
        (CONFIG, {"segment_length": 768}, "from mel.fft_length 1024"),
        (CONFIG, {"segment_length": 8192}, "to the 8000 samples of max_crop_s"),
        (CONFIG, {"predicted_mels": "nowhere"}, "there is no folder nowhere"),
        (replace(CONFIG, start_from="nowhere"), {}, "nowhere is no vocoder"),
        (CONFIG, {"sampling": SamplingConfig(bucket_batches=2)}, "knows shuffle_block_shards alone"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_the_start(
    mini_shards: Path, vocoder: VocoderConfig, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(PsclapError, match=message):
        check_training(vocoder_training(mini_shards, vocoder, **changes), ShardIndex(mini_shards), 1)


def test_sizes_that_do_not_go_together_are_refused() -> None:
    with pytest.raises(ConfigError, match="each rate needs a kernel"):
        GeneratorConfig(upsample_kernel_sizes=(8, 8, 8, 7))
    with pytest.raises(ConfigError, match="each kernel needs a list of dilations"):
        GeneratorConfig(resblock_kernel_sizes=(3,))
    with pytest.raises(ConfigError, match="divisible by 16"):
        GeneratorConfig(upsample_initial_channel=24)
    with pytest.raises(ConfigError, match="must be 7 numbers"):
        DiscriminatorConfig(scale_channels=(4, 4))
    with pytest.raises(ConfigError, match="make 256 samples of a frame"):
        VocoderConfig(mel=MelConfig(hop_length=200))
    with pytest.raises(ConfigError, match="knows precision alone"):
        train_config(compute=ComputeConfig(micro_batch_size=2))
    config = {"generator": {"resblock_dilation_sizes": [[1, 3]], "resblock_kernel_sizes": [3]}, "mel": {"max_hz": 8000}}
    assert from_mapping(VocoderConfig, config, "vocoder").mel.max_hz == 8000.0


def test_bfloat16_trains_alike() -> None:
    full, half = (vocoder_task(compute=ComputeConfig(precision=precision)) for precision in ("fp32", "bf16"))
    with torch.no_grad():
        expected, found = full(batch_of_rank(full)), half(batch_of_rank(half))
    assert found.total.dtype == torch.float32
    assert float(found.total) == pytest.approx(float(expected.total), rel=0.05)
    assert float(found.total) != float(expected.total)
