"""A voice's shards and Speech-Clip -> its Clip-TTS: tts/VOICE/clip_tts (model, training)."""

from psclap.config import Params
from stages._main import run_stage, voices
from stages.speech_clip import train_voice


def main(params: Params, voice: str) -> None:
    train_voice(params, voice, "clip_tts")


if __name__ == "__main__":
    run_stage(main, voices)
