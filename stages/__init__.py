"""One short file per DVC stage: declared inputs to declared outputs. Paths are relative to the repository."""

from pathlib import Path

PARAMS = Path("params.yaml")
LOCK = Path("dvc.lock")
CORPUS = Path("data/corpus")
SHARDS = Path("data/shards")
MODELS = Path("models")
TRAINING = Path("training")
METRICS = Path("metrics")
REPORTS = Path("reports")
REGISTERED = Path("registered")
EMBEDDINGS = Path("embeddings")
SUMMARY = Path("summary.md")

# Outside DVC's outputs, which it deletes before a rerun: what a killed run goes on from, and the store.
RUN_STORAGE = Path("runs")
TRACKING_STORE = Path("mlflow")
