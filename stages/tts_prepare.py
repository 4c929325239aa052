"""A voice's source -> Utterances: tts/VOICE/corpus."""

from psclap.config import Params
from stages import TTS
from stages._main import run_stage, voices
from stages.prepare import prepare


def main(params: Params, voice: str) -> None:
    prepare(params.voices[voice].corpus, TTS / voice / "corpus")


if __name__ == "__main__":
    run_stage(main, voices)
