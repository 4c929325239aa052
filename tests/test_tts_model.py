"""Speech-Clip and Clip-TTS: their parts against slow obvious ones, their losses, and what a rank's share is."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import betabinom
from small_speech import SIZES
from speech_tasks import MEL, VOCABULARY, batch_of, examples, model_of, speech_step, task_of

from psclap.errors import CheckpointError, PsclapError
from psclap.tts import losses
from psclap.tts.aligner import beta_binomial, forward_sum, monotonic_durations
from psclap.tts.build import load, new_model, take_over
from psclap.tts.clip_tts import ClipTTSModel, Voice
from psclap.tts.losses import symbol_of_frames
from psclap.tts.mel import MelConfig
from psclap.tts.modules import FFTBlock, FFTStack, length_mask, regulate
from psclap.tts_config import SpeechModelConfig

OBJECTIVES = ("speech_clip", "clip_tts")


def voice(count: int = 1, speaker: int = 0) -> Voice:
    return Voice(torch.full((count,), speaker), torch.zeros(count, len(VOCABULARY.styles)))


# --- as published ----------------------------------------------------------------------------------------------------


def test_the_sizes_are_the_papers() -> None:
    model = new_model("clip_tts", SpeechModelConfig(), MelConfig(), VOCABULARY, 0)
    assert isinstance(model, ClipTTSModel)
    assert len(model.text_encoder.stack.blocks) == len(model.decoder.stack.blocks) == 4
    block = model.decoder.stack.blocks[0]
    assert isinstance(block, FFTBlock)
    assert (block.num_heads, block.conv1.kernel_size, block.conv2.kernel_size) == (2, (9,), (1,))
    assert (block.conv1.in_channels, block.conv1.out_channels, block.conv2.out_channels) == (256, 1024, 256)
    predictor = model.text_encoder.duration_predictor
    assert [(conv.kernel_size, conv.out_channels) for conv in predictor.convs] == [((3,), 256)] * 2
    assert predictor.dropout.p == 0.5
    assert (model.decoder.linear.in_features, model.decoder.linear.out_features) == (256, 80)
    assert model.decoder.stack.causal
    assert not model.text_encoder.stack.causal


def test_the_first_weights_are_a_function_of_the_seed() -> None:
    first, again, other = (new_model("speech_clip", SIZES, MEL, VOCABULARY, seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["mel_encoder.linear.weight"], other["mel_encoder.linear.weight"])


@pytest.mark.parametrize("causal", [True, False])
def test_padding_changes_nothing(causal: bool) -> None:
    torch.manual_seed(0)
    stack = FFTStack(2, 16, 2, 32, (9, 1), 0.0, causal).eval()
    hidden = torch.randn(2, 11, 16)
    mask = length_mask(torch.tensor([11, 6]), 11)
    together = stack(hidden, mask)
    alone = stack(hidden[1:, :6], mask[1:, :6])
    torch.testing.assert_close(together[1, :6], alone[0], atol=1e-5, rtol=1e-5)
    assert not together[1, 6:].any()


def test_masked_attention_does_not_look_ahead() -> None:
    torch.manual_seed(0)
    before = torch.randn(1, 9, 16)
    after = before.clone()
    after[:, 5:] += 1
    mask = torch.ones(1, 9, dtype=torch.bool)
    for causal in (True, False):
        stack = FFTStack(2, 16, 2, 32, (1, 1), 0.0, causal).eval()  # convolutions of 1: attention alone mixes
        same = torch.isclose(stack(before, mask), stack(after, mask), atol=1e-6).all(-1)[0]
        assert same[:5].all() == causal
        assert not same[5:].any()


# --- lengths ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.lists(st.integers(0, 4), min_size=3, max_size=3), min_size=1, max_size=3))
def test_regulated_frames_are_those_of_a_loop(durations: list[list[int]]) -> None:
    states = torch.arange(len(durations) * 3.0).reshape(len(durations), 3, 1) + 1
    num_frames = max(map(sum, durations)) + 2
    expected = torch.zeros(len(durations), num_frames, 1)
    for row, of_row in enumerate(durations):
        spoken = [states[row, number] for number, count in enumerate(of_row) for _ in range(count)]
        if spoken:
            expected[row, : len(spoken)] = torch.stack(spoken)
    assert torch.equal(regulate(states, torch.tensor(durations), num_frames), expected)


@given(
    st.integers(1, 4).flatmap(
        lambda symbols: st.tuples(st.just(symbols), st.integers(symbols, 7), st.integers(0, 2**31 - 1))
    )
)
@settings(max_examples=60, deadline=None)
def test_the_alignment_is_the_best_of_all(case: tuple[int, int, int]) -> None:
    num_symbols, num_frames, seed = case
    scores = torch.randn(1, num_frames + 2, num_symbols + 1, generator=torch.Generator().manual_seed(seed))
    lengths = torch.tensor([num_frames]), torch.tensor([num_symbols])
    found = monotonic_durations(scores, *lengths)[0]
    assert found[num_symbols:].sum() == 0

    def total(durations: list[int]) -> float:
        symbols = [number for number, count in enumerate(durations) for _ in range(count)]
        return sum(scores[0, frame, symbol].item() for frame, symbol in enumerate(symbols))

    cuts = itertools.combinations(range(1, num_frames), num_symbols - 1)
    every = [[b - a for a, b in itertools.pairwise((0, *cut, num_frames))] for cut in cuts]
    assert found[:num_symbols].tolist() in every
    assert total(found[:num_symbols].tolist()) == pytest.approx(max(map(total, every)), abs=1e-5)


def test_the_forward_sum_is_over_all_paths() -> None:
    """By definition: of CTC with the sentence's symbols as alphabet, every path that collapses to 1 .. L."""
    torch.manual_seed(1)
    scores = torch.randn(1, 4, 2, dtype=torch.float64, requires_grad=True)
    with_blank = F.pad(scores, (1, 0), value=-1.0).log_softmax(-1)[0]

    def collapsed(path: tuple[int, ...]) -> list[int]:
        return [symbol for symbol, _ in itertools.groupby(path) if symbol]

    paths = [path for path in itertools.product(range(3), repeat=4) if collapsed(path) == [1, 2]]
    slow = -torch.stack([with_blank[range(4), path].sum() for path in paths]).logsumexp(0) / 4
    fast = forward_sum(scores, torch.tensor([4]), torch.tensor([2]))[0]
    torch.testing.assert_close(fast, slow)
    torch.testing.assert_close(*(torch.autograd.grad(loss, scores)[0] for loss in (fast, slow)))


def test_the_prior_is_the_beta_binomial_distribution() -> None:
    symbols, frames = torch.tensor([4, 2]), torch.tensor([6, 3])
    found = beta_binomial(symbols, frames, 4, 6).exp().numpy()
    for row, (num_symbols, num_frames) in enumerate(zip(symbols.tolist(), frames.tolist(), strict=True)):
        for frame in range(num_frames):
            expected = betabinom(num_symbols - 1, frame + 1, num_frames - frame).pmf(np.arange(num_symbols))
            np.testing.assert_allclose(found[row, frame, :num_symbols], expected, rtol=1e-5)


# --- losses ----------------------------------------------------------------------------------------------------------


def test_losses_are_the_slow_ones_with_their_gradients() -> None:
    torch.manual_seed(2)
    frames, symbols = torch.tensor([5, 3]), torch.tensor([3, 2])
    durations = torch.tensor([[2, 1, 2], [1, 2, 0]])
    mask_BF, mask_BL = length_mask(frames, 5), length_mask(symbols, 3)
    symbol_BF = symbol_of_frames(durations, 5)
    mel, states, predicted = torch.randn(2, 5, 4), torch.randn(2, 3, 4), torch.randn(2, 3)
    scale = torch.tensor(3.0)
    for tensor in (mel, states, predicted, scale):
        tensor.requires_grad_(True)
    log_alignment = mel @ states.transpose(1, 2)

    slow = {"frames": [], "binarisation": [], "duration": [], "mel": []}  # type: dict[str, list[torch.Tensor]]
    for row in range(2):
        own = list(range(symbols[row]))
        spoken = [number for number in own for _ in range(durations[row, number])]
        logits = [
            scale * torch.stack([F.cosine_similarity(mel[row, t], states[row, s], dim=0) for s in own])
            for t in range(frames[row])
        ]
        slow["frames"] += [
            torch.stack([-row_.log_softmax(0)[s] for row_, s in zip(logits, spoken, strict=True)]).mean()
        ]
        soft = log_alignment[row, : frames[row]].log_softmax(-1)
        slow["binarisation"] += [-torch.stack([soft[t, s] for t, s in enumerate(spoken)]).mean()]
        truth = torch.log(1 + durations[row].float())
        by_symbol = torch.stack([(predicted[row, s] - truth[s]) ** 2 for s in own]).mean()
        whole = sum((predicted[row, s].exp() - 1).clamp(min=0) for s in own)
        slow["duration"] += [by_symbol + (torch.log(whole + 1) - torch.log(durations[row].sum() + 1.0)) ** 2]
        slow["mel"] += [(mel[row, : frames[row]] - 1).abs().mean()]
    fast = {
        "frames": losses.frame_contrast(mel, states, scale, symbol_BF, mask_BF, mask_BL),
        "binarisation": losses.binarisation(log_alignment, symbol_BF, mask_BF),
        "duration": losses.duration_error(predicted, durations, mask_BL),
        "mel": losses.mel_error(mel, torch.ones_like(mel), mask_BF),
    }
    for name, loss in fast.items():
        expected = torch.stack(slow[name]).sum()
        torch.testing.assert_close(loss, expected)
        leaves = [mel, states, predicted, scale]
        both = [torch.autograd.grad(value, leaves, retain_graph=True, allow_unused=True) for value in (loss, expected)]
        for one, other in zip(*both, strict=True):
            assert (one is None) == (other is None)
            if one is not None and other is not None:
                torch.testing.assert_close(one, other)


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_every_weight_is_trained(objective: str) -> None:
    found = speech_step(objective)
    assert set(found["gradients"]) == {name for name, _ in task_of(objective).named_parameters()}
    untouched = [name for name, gradient in found["gradients"].items() if not gradient.abs().sum() > 0]
    assert untouched == []


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_clip_that_is_not_finite_is_named(objective: str) -> None:
    of_all = examples()
    of_all[2] = replace(of_all[2], mel=of_all[2].mel * float("nan"))
    with torch.no_grad():
        assert (~task_of(objective)(batch_of(of_all)).is_finite).nonzero().flatten().tolist() == [2]


def test_an_alignment_does_not_depend_on_padding() -> None:
    model = model_of("speech_clip", seed=3)
    model.set_mel_statistics(torch.full((MEL.num_mel_bins,), 3.0), torch.full((MEL.num_mel_bins,), 0.5))
    generator = torch.Generator().manual_seed(0)
    symbols, mel = torch.tensor([[1, 2, 3, 4]]), torch.randn(1, 9, MEL.num_mel_bins, generator=generator) + 3
    lengths = torch.tensor([4]), torch.tensor([9])
    alone = model.align(symbols, lengths[0], mel, lengths[1])
    padded = model.align(F.pad(symbols, (0, 2)), lengths[0], F.pad(mel, (0, 0, 0, 5)), lengths[1])
    assert torch.equal(padded[:, :4], alone)
    mask = length_mask(lengths[0], 4)
    scores = model.log_alignment(symbols, mask, model.normalise(mel), lengths[1])
    frames = model.normalise(F.pad(mel, (0, 0, 0, 5))) * length_mask(lengths[1], 14)[..., None]
    again = model.log_alignment(symbols, mask, frames, lengths[1])
    torch.testing.assert_close(again[:, :9], scores)


# --- speaking --------------------------------------------------------------------------------------------------------


def test_a_sentence_is_as_long_as_its_durations_say() -> None:
    model = model_of("clip_tts")
    assert isinstance(model, ClipTTSModel)
    symbols, lengths = torch.tensor([[1, 2, 3], [2, 1, 0]]), torch.tensor([3, 2])
    durations = torch.tensor([[2, 3, 1], [4, 1, 0]])
    spoken = model.speak(symbols, lengths, voice(2), durations_BL=durations)
    assert spoken.mel.shape == (2, 6, MEL.num_mel_bins)
    assert spoken.mel[0].abs().sum(-1).all()
    assert not spoken.mel[1, 5:].any()
    alone = model.speak(symbols[1:, :2], lengths[1:], voice(), durations_BL=durations[1:, :2])
    torch.testing.assert_close(alone.mel[0], spoken.mel[1, :5], atol=1e-4, rtol=1e-4)


def test_pace_is_kept_to_a_frame() -> None:
    model = model_of("clip_tts")
    assert isinstance(model, ClipTTSModel)
    with torch.no_grad():
        model.text_encoder.duration_predictor.out.bias.fill_(float(np.log(8.3)))  # 7.3 frames and a little
    symbols, lengths = torch.randint(1, 5, (1, 40)), torch.tensor([40])
    whole = model.speak(symbols, lengths, voice()).durations.sum().item()
    for pace in (0.5, 0.8, 1.0, 2.0, 4.0):
        spoken = model.speak(symbols, lengths, voice(), pace_B=pace).durations
        assert spoken.sum().item() == pytest.approx(whole / pace, abs=1.5 / min(pace, 1))
        assert (spoken >= 0).all()


def test_voices_differ() -> None:
    model = model_of("clip_tts")
    assert isinstance(model, ClipTTSModel)
    symbols, lengths, durations = torch.tensor([[1, 2, 3]]), torch.tensor([3]), torch.tensor([[2, 2, 2]])
    styled = Voice(torch.tensor([0]), torch.eye(len(VOCABULARY.styles))[:1])
    mels = [model.speak(symbols, lengths, by, durations_BL=durations).mel for by in (voice(), voice(1, 1), styled)]
    assert not any(torch.allclose(one, other, atol=1e-3) for one, other in itertools.combinations(mels, 2))


# --- what one takes over from another, and folders -------------------------------------------------------------------


def test_clip_tts_starts_with_speech_clips_text_side() -> None:
    start, model = model_of("speech_clip", seed=1), model_of("clip_tts", seed=2)
    start.set_mel_statistics(torch.full((MEL.num_mel_bins,), 0.5), torch.full((MEL.num_mel_bins,), 2.0))
    decoder = {name: value.clone() for name, value in model.state_dict().items() if name.startswith("decoder")}
    take_over(start, model)
    taken = model.state_dict()
    for name, value in start.state_dict().items():
        assert name not in taken or torch.equal(taken[name], value)
    assert {name.split(".")[0] for name in taken.keys() & start.state_dict().keys()} == {
        *("aligner", "mel_deviation", "mel_mean", "text_encoder")
    }
    assert all(torch.equal(taken[name], value) for name, value in decoder.items())
    with pytest.raises(PsclapError, match=r"start_from: .* is .* in the model to start from and"):
        take_over(start, new_model("clip_tts", replace(SIZES, hidden_size=32), MEL, VOCABULARY, 0))


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_a_folder_gives_the_model_back(objective: str, tmp_path: Path) -> None:
    model = model_of(objective)
    task_of(objective).save(tmp_path, model.state_dict())
    again = load(tmp_path)
    assert type(again) is type(model)
    assert again.config.symbols == [*VOCABULARY.symbols]
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "config.json").unlink(), "is no checkpoint folder"),
        (lambda folder: (folder / "config.json").write_text('{"model_type": "bert"}'), "holds a model of type 'bert'"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 99), "is a damaged checkpoint"),
        (lambda folder: _shorten(folder / "model.safetensors"), "is a damaged checkpoint"),
    ],
)
def test_a_damaged_folder_is_refused(change: Any, said: str, tmp_path: Path) -> None:
    task_of("clip_tts").save(tmp_path, model_of("clip_tts").state_dict())
    change(tmp_path)
    with pytest.raises(CheckpointError, match=said):
        load(tmp_path)


def _shorten(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])
