"""The `psclap` command: use models, bring them in and out, check data sets and configurations."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from psclap import log
from psclap.cli_checkpoint import checkpoint_app
from psclap.cli_common import DEFAULT_MODEL, AsJson, Model, load_embedder, print_rows
from psclap.cli_data import data_app
from psclap.cli_drift import drift_app
from psclap.cli_evaluate import evaluate_app
from psclap.cli_export import export_app
from psclap.cli_rank import rank_app
from psclap.cli_say import say_app
from psclap.cli_search import search_app
from psclap.cli_status import status_app
from psclap.errors import PsclapError
from psclap.storage import redacted

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
config_app = typer.Typer(no_args_is_help=True, help="Check params.yaml, or replace it by a preset.")
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.add_typer(checkpoint_app)
app.add_typer(drift_app)
app.add_typer(export_app)
app.add_typer(evaluate_app)
app.add_typer(rank_app)
app.add_typer(say_app)
app.add_typer(search_app)
app.add_typer(status_app)

Audio = Annotated[list[str], typer.Argument(help="Audio files or URLs, of any kind and rate.")]


@app.command()
def score(
    audio: Audio,
    text: Annotated[list[str], typer.Option(help="A caption; give --text several times for several.")],
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
) -> None:
    """Cosine of every audio file with every caption."""
    cosines = load_embedder(model).score(audio, text)
    rows = [
        {"audio": path, "text": caption, "score": round(float(cosine), 4)}
        for path, of_path in zip(audio, cosines, strict=True)
        for caption, cosine in zip(text, of_path, strict=True)
    ]
    print_rows(rows, as_json)


@app.command()
def classify(
    audio: Audio,
    tags: Annotated[str, typer.Option(help="Tags separated by commas, or an attribute's name, such as texture.")],
    ensemble: Annotated[bool, typer.Option("--ensemble", help="Average over all wordings of a tag.")] = False,
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
) -> None:
    """The nearest of the candidate tags for every audio file, with the cosines of all."""
    from psclap.tags import resolve_candidates

    candidates = resolve_candidates(name.strip() for name in tags.split(",") if name.strip())
    rows = [
        {"audio": path, "tag": found.tag} | {tag: round(cosine, 4) for tag, cosine in found.scores.items()}
        for path, found in zip(audio, load_embedder(model).classify(audio, candidates, ensemble), strict=True)
    ]
    print_rows(rows, as_json)


@app.command()
def pull(
    model: Annotated[str, typer.Argument(help="models:/NAME/VERSION, models:/NAME@ALIAS, or a name on the Hub.")],
    folder: Annotated[Path, typer.Argument(help="The folder to make.")],
) -> None:
    """Copy a model to a folder, which transformers and psclap load."""
    from psclap.models import fetch

    fetch.pull(model, folder)
    typer.echo(f"{model} is in {folder}")


@app.command()
def push(
    folder: Annotated[Path, typer.Argument(help="A checkpoint folder, trained here or not.")],
    name: Annotated[str, typer.Argument(help="The registered model that it becomes a version of.")],
    alias: Annotated[str | None, typer.Option(help="An alias for the version, such as champion.")] = None,
) -> None:
    """Register a checkpoint folder as a new version of a model."""
    from psclap.models import fetch

    uri = fetch.push(folder, name, alias)
    typer.echo(f"{folder} is {uri}" + (f", {name}@{alias}" if alias else ""))


@config_app.command("check")
def config_check(path: Annotated[Path, typer.Argument(help="A params file.")] = Path("params.yaml")) -> None:
    """Check a params file without running anything; no network is needed."""
    from psclap.config import load_params
    from psclap.corpora import build_corpus
    from psclap.models.choice import check_encoders
    from psclap.tts.mel import check_mel

    params = load_params(path)
    build_corpus(params.corpus.name, params.corpus.options)
    check_encoders(params.model)
    for name, voice in params.voices.items():
        build_corpus(voice.corpus.name, voice.corpus.options, f"tts.{name}.corpus")
        check_mel(voice.mel, voice.shard.sample_rate_hz, f"tts.{name}")
    voices = f", voices {', '.join(params.voices)}" if params.voices else ""
    typer.echo(f"{path} is valid: corpus {params.corpus.name}, variants {', '.join(params.train)}{voices}")


@config_app.command("use")
def config_use(
    preset: Annotated[str, typer.Argument(help="demo or paper.")],
    path: Annotated[Path, typer.Option(help="The file to write.")] = Path("params.yaml"),
    force: Annotated[bool, typer.Option(help="Overwrite edited params.")] = False,
) -> None:
    """Make params.yaml a copy of a preset."""
    from psclap.config import use_preset

    use_preset(preset, path, force)
    typer.echo(f"{path} is now the preset {preset}; `dvc repro` runs it")


def main() -> None:
    """Runs the command; bad input ends it with one sentence and status 1, Ctrl-C with 130."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        with log.answering():
            app()
    except PsclapError as error:
        sys.exit(redacted(f"error: {error}"))
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
