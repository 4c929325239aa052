"""Model + shards -> metrics/VARIANT (numbers for `dvc metrics`) and reports/VARIANT (details, plots)."""

from psclap.config import Params
from psclap.embedding import Embedder
from psclap.evaluation.evaluate import TestSets
from psclap.evaluation.report import headline, write_report
from psclap.files import atomic_folder, write_json
from psclap.shards.index import ShardIndex
from psclap.training.spec import Training, build_training_model
from stages import METRICS, MODELS, REPORTS, SHARDS
from stages._main import run_stage


def main(params: Params, variant: str) -> None:
    index = ShardIndex(SHARDS)
    test_sets = TestSets(index, params.evaluate)
    training = Training(SHARDS, params.model, params.train[variant], params.seed)
    batch_size = params.evaluate.batch_size
    untrained = build_training_model(training, index)
    results = {
        "model": test_sets.evaluate(Embedder(MODELS / variant, batch_size)),
        "untrained": test_sets.evaluate(Embedder.of(*untrained, batch_size)),
        "chance": test_sets.chance(),
    }
    with atomic_folder(REPORTS / variant) as folder:
        write_report(folder, variant, results)
    numbers = headline(results)
    with atomic_folder(METRICS / variant) as folder:
        for name, entry in numbers.items():
            write_json(folder / f"{name}.json", entry)
    for name in params.evaluate.caption_sets:
        scores = numbers[name]["audio_to_text"]
        values = [f"R@{k} {scores[f'R@{k}']:.3f} (chance {scores[f'chance_R@{k}']:.3f})" for k in (1, 10)]
        print(f"evaluate: {variant} on the {name} set: {', '.join(values)}")


if __name__ == "__main__":
    run_stage(main)
