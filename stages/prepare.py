"""Source -> Utterances: data/corpus with `utterances.parquet` and, where the corpus makes audio, the audio."""

from pathlib import Path

from psclap import log
from psclap.config import Params
from psclap.corpora import build_corpus
from psclap.data_config import CorpusConfig
from psclap.files import atomic_folder
from psclap.schema import write_utterances
from stages import CORPUS
from stages._main import run_stage


def main(params: Params) -> None:
    prepare(params.corpus, CORPUS)


def prepare(config: CorpusConfig, target: Path) -> None:
    """Writes the utterances of a corpus to `target`."""
    corpus = build_corpus(config.name, config.options)
    with atomic_folder(target) as folder:
        count = write_utterances(corpus.utterances(folder, processes=None), folder / "utterances.parquet")
    log.info(f"prepare: {count} utterances of the corpus {config.name} in {target}", utterances=count)


if __name__ == "__main__":
    run_stage(main)
