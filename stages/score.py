"""Registered model + shards -> embeddings/: tables of clips, windows and rejects."""

import json
import shutil

from pipelines.score import score, scoring_model
from psclap import log, storage
from psclap.config import Params
from psclap.files import atomic_folder, check_folder_writable
from psclap.scoring.inputs import open_input
from psclap.scoring.job import ScoreJob
from stages import EMBEDDINGS, REGISTERED, RUN_STORAGE, SHARDS
from stages._main import run_stage


def main(params: Params) -> None:
    uri = json.loads((REGISTERED / f"{params.score.variant}.json").read_text())["uri"]
    check_folder_writable(EMBEDDINGS)
    model = scoring_model(uri)
    # DVC removes embeddings/ before it runs the stage: what a killed one goes on from lies elsewhere.
    output = str(RUN_STORAGE / "score")
    if params.score.url is not None:
        output = storage.join(params.score.url, f"{params.score.variant}-{model.weights_sha256[:16]}")
    job = ScoreJob(model, open_input(str(SHARDS), params.score.split), output, params.score.options)
    summary = score(job, overwrite=True)
    _bring(output)
    log.info(
        f"score: {summary['clips']} {params.score.split} clips by {uri} in {EMBEDDINGS}",
        clips=summary["clips"],
        rejects=summary["rejects"],
        model=uri,
    )


def _bring(output: str) -> None:
    if not storage.is_remote(output):
        shutil.rmtree(EMBEDDINGS, ignore_errors=True)
        shutil.move(output, EMBEDDINGS)
        return
    with atomic_folder(EMBEDDINGS) as folder:
        for name in ("", *storage.folders(output)):
            source = storage.join(output, name) if name else output
            (folder / name).mkdir(exist_ok=True)
            for file in storage.sizes(source):
                storage.download(storage.join(source, file), folder / name / file)
    storage.remove(output)


if __name__ == "__main__":
    run_stage(main)
