"""Model + shards -> metrics/VARIANT (numbers for `dvc metrics`) and reports/VARIANT (details, plots)."""

from psclap import log
from psclap.config import Params
from psclap.embedding import Embedder
from psclap.evaluation.evaluate import TestSets
from psclap.evaluation.report import headline
from psclap.evaluation.run import evaluate_to_folder
from psclap.files import atomic_folder, write_json
from psclap.shards.index import ShardIndex
from psclap.training.dual_encoder import DualEncoderRecipe
from stages import METRICS, MODELS, REPORTS, SHARDS
from stages._main import run_stage


def main(params: Params, variant: str) -> None:
    index = ShardIndex(SHARDS)
    test_sets = TestSets(index, params.evaluate)
    recipe = DualEncoderRecipe(params.model, params.train[variant])
    untrained = Embedder.of(*recipe.build_model(index, params.seed))
    results = evaluate_to_folder(REPORTS / variant, variant, test_sets, Embedder(MODELS / variant), untrained)
    numbers = headline(results)
    with atomic_folder(METRICS / variant) as folder:
        for name, entry in numbers.items():
            write_json(folder / f"{name}.json", entry)
    for name in params.evaluate.caption_sets:
        scores = numbers[name]["audio_to_text"]
        values = [f"R@{k} {scores[f'R@{k}']:.3f} (chance {scores[f'chance_R@{k}']:.3f})" for k in (1, 10)]
        log.info(
            f"evaluate: {variant} on the {name} set: {', '.join(values)}", variant=variant, set=name, scores=scores
        )


if __name__ == "__main__":
    run_stage(main)
