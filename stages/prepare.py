"""Source -> Utterances: data/corpus with `utterances.parquet` and, where the corpus makes audio, the audio."""

from psclap.config import Params
from psclap.corpora import build_corpus
from psclap.files import atomic_folder
from psclap.schema import write_utterances
from stages import CORPUS
from stages._main import run_stage


def main(params: Params) -> None:
    corpus = build_corpus(params.corpus.name, params.corpus.options)
    with atomic_folder(CORPUS) as folder:
        count = write_utterances(corpus.utterances(folder, processes=None), folder / "utterances.parquet")
    print(f"prepare: {count} utterances of the corpus {params.corpus.name} in {CORPUS}")


if __name__ == "__main__":
    run_stage(main)
