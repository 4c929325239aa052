"""A voice's models + shards -> tts/VOICE/reports (numbers, pages to look at and listen to) and metrics/tts/VOICE."""

from typing import Any

import torch

from psclap import log
from psclap.config import Params
from psclap.corpora import build_corpus
from psclap.corpora.demo_tts import DemoTts
from psclap.data_config import CorpusConfig
from psclap.files import atomic_folder, write_json
from psclap.models.device import device_of
from psclap.schema import Split
from psclap.shards.index import ShardIndex
from psclap.tts.build import load
from psclap.tts.clip_tts import ClipTTSModel
from psclap.tts.evaluation.alignment import Timeline
from psclap.tts.evaluation.models import ClipTTS, SpeechClip, untrained
from psclap.tts.evaluation.results import headline
from psclap.tts.evaluation.run import evaluate_matcher, evaluate_synthesiser
from psclap.tts.mel import MelConfig
from psclap.tts.speech_clip import SpeechClipModel
from psclap.tts.vocoder import load_vocoder
from stages import METRICS, TTS
from stages._main import run_stage, voices


def main(params: Params, voice: str) -> None:
    # Operations on a clip are small: a second thread costs more than it brings.
    torch.set_num_threads(params.resources.threads_per_cpu_worker)
    config, folder = params.voices[voice].evaluate, TTS / voice
    index = ShardIndex(folder / "shards")
    device = device_of()
    speech_clip, clip_tts = (load(folder / name / "model").to(device) for name in ("speech_clip", "clip_tts"))
    assert isinstance(speech_clip, SpeechClipModel)
    assert isinstance(clip_tts, ClipTTSModel)
    shared: dict[str, Any] = {"known": _known(params.voices[voice].corpus, index, config.split), "split": config.split}
    with atomic_folder(folder / "reports") as reports:
        matched = evaluate_matcher(
            reports / "speech_clip", f"Speech-Clip {voice}", index, SpeechClip(speech_clip), **shared
        )
        said = evaluate_synthesiser(
            reports / "clip_tts",
            f"Clip-TTS {voice}",
            index,
            ClipTTS(clip_tts),
            load_vocoder(config.vocoder, MelConfig.from_dict(clip_tts.config.mel), device),
            untrained=ClipTTS(untrained(clip_tts)),
            max_clips=config.max_clips,
            **shared,
        )
    numbers = {"speech_clip": headline(matched), "clip_tts": headline(said)}
    with atomic_folder(METRICS / "tts" / voice) as metrics:
        for name, entry in numbers.items():
            write_json(metrics / f"{name}.json", entry)
    _tell(voice, numbers["speech_clip"], numbers["clip_tts"])


def _known(corpus: CorpusConfig, index: ShardIndex, split: Split) -> dict[str, Timeline]:
    """When which phoneme was spoken, where the corpus knows."""
    source = build_corpus(corpus.name, corpus.options)
    if not isinstance(source, DemoTts):
        return {}
    keys = index.take(index.rows_of(split), ["key"])["key"].to_pylist()
    return {key: Timeline.of_events(events) for key, _, events in source.timed(keys)}


def _tell(voice: str, matched: dict[str, Any], said: dict[str, Any]) -> None:
    recall = matched["retrieval"]["mel_to_text"]
    log.info(
        f"tts_evaluate: {voice}, Speech-Clip R@1 {recall['R@1']:.3f} (chance {recall['chance_R@1']:.3f}), Clip-TTS "
        f"mel-cepstral distortion {said['model']['mcd_db']:.2f} dB (untrained {said['untrained']['mcd_db']:.2f}, copy "
        f"synthesis {said['copy_synthesis']['mcd_db']:.2f})",
        voice=voice,
        **matched,
        **said,
    )


if __name__ == "__main__":
    run_stage(main, voices)
