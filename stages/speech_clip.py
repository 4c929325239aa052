"""A voice's shards -> its Speech-Clip: tts/VOICE/speech_clip (model, training)."""

from dataclasses import replace

from psclap.config import Params
from psclap.tts.mel import check_mel
from psclap.tts.recipe import SpeechRecipe
from psclap.tts_config import Objective
from stages import TTS
from stages._main import run_stage, voices
from stages.train import train


def main(params: Params, voice: str) -> None:
    train_voice(params, voice, "speech_clip")


def train_voice(params: Params, voice: str, objective: Objective) -> None:
    """Trains one of a voice's two models, from the other one where its configuration says so."""
    config, folder = params.voices[voice], TTS / voice
    loop = config.speech_clip if objective == "speech_clip" else config.clip_tts
    mel = check_mel(config.mel, config.shard.sample_rate_hz, f"tts.{voice}")
    start = None if loop.start_from is None else str((folder / loop.start_from / "model").absolute())
    out = folder / objective
    recipe = SpeechRecipe(config.model, mel, loop, start)
    if config.cpu_workers is not None:
        params = replace(params, resources=replace(params.resources, cpu_workers=config.cpu_workers))
    train(params, f"{objective}-{voice}", recipe, folder / "shards", out / "model", out / "training")


if __name__ == "__main__":
    run_stage(main, voices)
