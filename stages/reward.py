"""Model + the demo's voices -> reward/VARIANT: best-of-N selection and what it brings, by an acoustic judge."""

from psclap import log
from psclap.config import Params
from psclap.corpora import build_corpus
from psclap.corpora.demo import Demo
from psclap.embedding import Embedder
from psclap.errors import PsclapError
from psclap.evaluation.reward.demonstration import calibrated_judge, demonstrate
from psclap.evaluation.reward.report import headline, told, write_recall
from psclap.files import atomic_folder, write_json
from psclap.models.fetch import weights_sha256
from stages import HEARD, METRICS, MODELS, REWARD, SHARDS
from stages._main import run_stage


def main(params: Params, variant: str) -> None:
    corpus = build_corpus(params.corpus.name, params.corpus.options)
    if not isinstance(corpus, Demo):
        raise PsclapError(f"reward renders the voices of the corpus 'demo', not {params.corpus.name!r}")
    config = params.reward
    judge = calibrated_judge(SHARDS, config.calibration_clips, params.seed, HEARD)
    model = {"name": str(MODELS / variant), "weights_sha256": weights_sha256(MODELS / variant)}
    with atomic_folder(REWARD / variant) as folder:
        result = demonstrate(
            corpus, Embedder(MODELS / variant), judge, config, params.seed, folder / "selection", model
        )
        how = f"which follow each asked attribute with probability {config.follow_probability:g}, else at random"
        write_recall(folder, variant, result, f"{config.candidates} candidates each, {how}")
    numbers = headline(result)
    write_json(METRICS / "reward" / f"{variant}.json", numbers)
    log.info(f"reward: {variant}, {told(numbers)}", variant=variant, **numbers)


if __name__ == "__main__":
    run_stage(main)
