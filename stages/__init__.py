"""One short file per DVC stage: declared inputs to declared outputs. Paths are relative to the repository."""

import os
from pathlib import Path

from psclap.startup import collect_seldom_in_programs

collect_seldom_in_programs()

# OpenMP reads it when torch is imported. Its threads else spin while they wait, and on cores that others use, too,
# small operations on two threads take five times as long as on one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

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
REWARD = Path("reward")
SUMMARY = Path("summary.md")
TTS = Path("tts")

# Outside DVC's outputs, which it deletes before a rerun: what a killed run goes on from, and the store.
RUN_STORAGE = Path("runs")
HEARD = RUN_STORAGE / "heard.npz"  # what the acoustic judge is calibrated on, for all stages that it listens for
TRACKING_STORE = Path("mlflow")
