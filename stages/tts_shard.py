"""A voice's utterances -> shards: tts/VOICE/shards."""

from psclap.config import Params
from stages import RUN_STORAGE, TTS
from stages._main import run_stage, voices
from stages.shard import shard


def main(params: Params, voice: str) -> None:
    folder = TTS / voice
    shard(params.voices[voice].shard, folder / "corpus", folder / "shards", RUN_STORAGE / f"shards-{voice}")


if __name__ == "__main__":
    run_stage(main, voices)
