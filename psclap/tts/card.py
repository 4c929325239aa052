"""The model card of a Clip-TTS: what it is, what it was trained on, how it does, how to use it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from psclap.markdown import table
from psclap.tts_config import GRIFFIN_LIM

_MEASURES = {
    "mcd_db": "mel-cepstral distortion, dB",
    "f0_rmse_cents": "F0 error, cents",
    "voicing_error": "voicing error",
    "length_error": "length error",
}
_SYSTEMS = {
    "copy_synthesis": "recording through the vocoder",
    "model": "this model",
    "untrained": "untrained",
    "mean_mel": "mean mel",
}


def description(name: str, config: Mapping[str, Any], numbers: Mapping[str, Any], vocoder: str) -> str:
    """One line for the registry's list."""
    model, copy = numbers["clip_tts"]["model"], numbers["clip_tts"]["copy_synthesis"]
    voices = f"{_count(len(config['speakers']), 'speaker')} and {_count(len(config['styles']), 'style')}"
    return (
        f"{name}: Clip-TTS with {voices}; mel-cepstral distortion {model['mcd_db']:.2f} dB through {vocoder}, of "
        f"recordings through it {copy['mcd_db']:.2f}; MLflow serves it through {GRIFFIN_LIM}"
    )


def card(
    name: str,
    config: Mapping[str, Any],
    corpus: Mapping[str, Any],
    numbers: Mapping[str, Any],
    vocoder: str,
    alias: str,
    license_name: str,
) -> Iterator[str]:
    """The lines of the card, in Markdown.

    `corpus` is the shards' summary, `numbers` what the evaluation stage measured through `vocoder`, `alias` what the
    version gets, `license_name` a licence of the Hub.
    """
    yield from ("---", f"license: {license_name}", "pipeline_tag: text-to-speech", "tags: [clip-tts, psclap]", "---")
    yield from ("", f"# {name}", "")
    yield "Text to mel spectrograms (Clip-TTS, arXiv 2502.18889), in the voices and styles that it was trained on."
    train = corpus["splits"]["train"]
    yield ""
    yield (
        f"Trained on {train['clips']:,} clips, {train['hours']:.2f} h, by {_count(train['speakers'], 'speaker')}; it "
        f"speaks {', '.join(config['languages'])}. Speakers: {_some(config['speakers'])}. Styles: "
        f"{_some(config['styles'])}."
    )
    mel = config["mel"]
    yield (
        f"It makes log-mels of {mel['num_mel_bins']} bins at {mel['sample_rate_hz']} Hz, a frame every "
        f"{mel['hop_length']} samples; a vocoder of the same definition makes sound of them. MLflow serves it through "
        f"{GRIFFIN_LIM}; `psclap say` takes any by --vocoder, and {GRIFFIN_LIM} without."
    )
    yield from ("", "## On held-out sentences", "", f"All of them were heard through {vocoder}.", "")
    yield from measures_table(numbers)
    yield from ("", "## Use", "", "```sh")
    yield f'psclap say "The small cat waited for the rain." --tts models:/{name}@{alias} \\'
    yield '    --style "a deep, slow voice" -n 8 -o out.wav'
    yield "```"
    yield from ("", "## Limits", "")
    yield "No voice but those of training, no phoneme that no clip had. Numbers say how near to the recordings it is,"
    yield "not how people like it: nobody listened."


def measures_table(numbers: Mapping[str, Any]) -> list[str]:
    """How the model does on held-out sentences, beside what it should beat and what bounds it, as Markdown."""
    systems = numbers["clip_tts"]
    rows = [
        [title, *(f"{systems[system][measure]:.3f}" if measure in systems[system] else "-" for measure in _MEASURES)]
        for system, title in _SYSTEMS.items()
        if system in systems
    ]
    return table(["", *_MEASURES.values()], rows)


def summary(voice: str, numbers: Mapping[str, Any]) -> list[str]:
    """The lines of a voice's results: retrieval and alignment of Speech-Clip, speech of Clip-TTS."""
    matched = numbers["speech_clip"]
    recall = matched["retrieval"]["mel_to_text"]
    lines = [
        f"Text to speech, voice {voice}: Speech-Clip finds the text of a mel with R@1 {100 * recall['R@1']:.1f} % "
        f"(chance {100 * recall['chance_R@1']:.1f})"
    ]
    if "alignment" in matched:
        aligned, even = (matched["alignment"][kind] for kind in ("predicted", "even"))
        lines[0] += (
            f"; its alignment is {aligned['median_ms']:.0f} ms from espeak-ng's phoneme times in the median (symbols "
            f"of one length: {even['median_ms']:.0f})"
        )
    return [f"{lines[0]}. Clip-TTS on held-out sentences:", "", *measures_table(numbers)]


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}" + ("" if number == 1 else "s")


def _some(names: Any) -> str:
    return ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "") if names else "none"
