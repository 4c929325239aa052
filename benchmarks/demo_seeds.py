"""The demo's quality over training seeds and options: every variant is trained and tested on the same shards.

The checkpoint is chosen on val. Needs data/shards (`dvc repro shard`). Prints a Markdown table; about 6 minutes a
seed on 2 cores.

    python benchmarks/demo_seeds.py --seeds 3407 1 2
    python benchmarks/demo_seeds.py --seeds 3407 1 2 --set duplicate_captions=negatives
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path

import yaml

from pipelines.cluster import ray_session
from pipelines.tracking import TrackingStore
from pipelines.train import Run, train_variant
from psclap.config import load_params
from psclap.embedding import Embedder
from psclap.evaluation.evaluate import TestSets
from psclap.shards.index import ShardIndex
from psclap.training.dual_encoder import DualEncoderRecipe
from psclap.training.spec import Training


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[3407, 1, 2])
    parser.add_argument("--shards", type=Path, default=Path("data/shards"))
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="keys of train.* in every variant")
    arguments = parser.parse_args()
    params = load_params("params.yaml")
    changes = {key: yaml.safe_load(value) for key, value in (change.split("=", 1) for change in arguments.set)}
    test_sets = TestSets(ShardIndex(arguments.shards), params.evaluate)
    attributes = params.evaluate.attributes
    print("| seed | variant | intrinsic R@1 / R@10 | situational | combined |", " | ".join(attributes), "|")
    print("|" + "---|" * (5 + len(attributes)))
    with tempfile.TemporaryDirectory() as folder, ray_session():
        for seed in arguments.seeds:
            for variant, published in params.train.items():
                config = dataclasses.replace(published, **changes)
                model = Path(folder) / f"{variant}-{seed}"
                run = Run(
                    name=variant,
                    training=Training(arguments.shards.absolute(), DualEncoderRecipe(params.model, config), seed),
                    resources=dataclasses.replace(params.resources, max_failures=0),
                    storage=Path(folder) / "runs",
                    store=TrackingStore.at(Path(folder) / "mlflow"),
                    experiment="seeds",
                    tags={},
                )
                train_variant(run, model)
                result = test_sets.evaluate(Embedder(model)).results
                recalls = [scores["audio_to_text"] for scores in result["retrieval"].values()]
                cells = [f"{100 * r['R@1']:.1f} / {100 * r['R@10']:.1f}" for r in recalls]
                cells += [f"{100 * result['classification'][name]['UAR']:.1f}" for name in attributes]
                print(f"| {seed} | {variant} |", " | ".join(cells), "|", flush=True)


if __name__ == "__main__":
    main()
