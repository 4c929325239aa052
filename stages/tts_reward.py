"""A voice's Clip-TTS + the dual encoder -> tts/VOICE/reward: best-of-N chosen by style, by an acoustic judge."""

from pathlib import Path
from typing import Any

from psclap import log
from psclap.config import Params
from psclap.files import atomic_folder, write_json
from stages import HEARD, METRICS, MODELS, SHARDS, TTS
from stages._main import run_stage, voices


def main(params: Params, voice: str) -> None:
    with atomic_folder(TTS / voice / "reward") as out:
        numbers = _choose(params, voice, out) if params.voices[voice].say.prompts else {}
    write_json(METRICS / "reward" / "tts" / f"{voice}.json", numbers)


def _choose(params: Params, voice: str, out: Path) -> dict[str, Any]:
    """Writes what best-of-N brings to `out`; returns its headline."""
    # Seconds to import, and a voice without prompts needs none of it.
    import torch

    from psclap.corpora import build_corpus
    from psclap.corpora.demo_tts import DemoTts
    from psclap.embedding import Embedder
    from psclap.evaluation.reward.demonstration import calibrated_judge
    from psclap.evaluation.reward.report import headline, told, write_recall
    from psclap.models.fetch import weights_sha256
    from psclap.tts.demonstration import demonstrate
    from psclap.tts.say import TextToSpeech

    torch.set_num_threads(params.resources.threads_per_cpu_worker)  # as in tts_evaluate
    config = params.voices[voice]
    corpus, reward = build_corpus(config.corpus.name, config.corpus.options), MODELS / config.say.reward
    assert isinstance(corpus, DemoTts)  # VoiceConfig has no prompts for others
    result = demonstrate(
        corpus,
        TextToSpeech(TTS / voice / "clip_tts" / "model", config.evaluate.vocoder),
        Embedder(reward),
        calibrated_judge(SHARDS, config.say.calibration_clips, params.seed, HEARD),
        config.say.prompts,
        config.say.candidates,
        params.seed,
        out / "selection",
        {"name": str(reward), "weights_sha256": weights_sha256(reward)},
    )
    how = "by Clip-TTS, with speaker, styles, pace, pitch and timing drawn by chance"
    write_recall(
        out, f"{config.say.reward}, of what {voice} says", result, f"{config.say.candidates} candidates each {how}"
    )
    numbers = headline(result)
    log.info(f"tts_reward: {voice}, {told(numbers)}", voice=voice, **numbers)
    return numbers


if __name__ == "__main__":
    run_stage(main, voices)
