"""The `psclap` command: use models, bring them in and out, check data sets and configurations."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from psclap.cli_checkpoint import checkpoint_app
from psclap.cli_data import data_app
from psclap.cli_export import export_app
from psclap.errors import PsclapError
from psclap.startup import uncollected_imports

if TYPE_CHECKING:
    from psclap.embedding import Embedder

DEFAULT_MODEL = "models:/psclap-combined@champion"

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)
config_app = typer.Typer(no_args_is_help=True, help="Check params.yaml, or replace it by a preset.")
app.add_typer(config_app, name="config")
app.add_typer(data_app, name="data")
app.add_typer(checkpoint_app)
app.add_typer(export_app)

Audio = Annotated[list[str], typer.Argument(help="Audio files or URLs, of any kind and rate.")]
Model = Annotated[str, typer.Option(help="A checkpoint folder, a models:/ URI, or a name on the Hub.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def score(
    audio: Audio,
    text: Annotated[list[str], typer.Option(help="A caption; give --text several times for several.")],
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
) -> None:
    """Cosine of every audio file with every caption."""
    cosines = _embedder(model).score(audio, text)
    rows = [
        {"audio": path, "text": caption, "score": round(float(cosine), 4)}
        for path, of_path in zip(audio, cosines, strict=True)
        for caption, cosine in zip(text, of_path, strict=True)
    ]
    _print(rows, as_json)


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
        for path, found in zip(audio, _embedder(model).classify(audio, candidates, ensemble), strict=True)
    ]
    _print(rows, as_json)


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


@app.command()
def search(
    embeddings: Annotated[Path, typer.Argument(help="A folder that the embed stage wrote.")],
    caption: Annotated[str, typer.Argument(help="What to look for.")],
    top: Annotated[int, typer.Option(min=1, help="How many clips.")] = 10,
    model: Annotated[str | None, typer.Option(help="Default: the model that made the embeddings.")] = None,
    as_json: AsJson = False,
) -> None:
    """The clips of an embedded corpus that fit a caption best."""
    from psclap.search import EmbeddedCorpus

    corpus = EmbeddedCorpus.load(embeddings)
    query = _embedder(model or corpus.model).embed_text([caption])[0]
    found = corpus.search(query, top)
    if as_json:
        _print(found, as_json)
        return
    rows = [
        {
            "score": round(clip["score"], 4),
            "key": clip["key"],
            "tags": ", ".join(clip["intrinsic_tags"] + clip["situational_tags"]),
        }
        for clip in found
    ]
    _print(rows, as_json)


@config_app.command("check")
def config_check(path: Annotated[Path, typer.Argument(help="A params file.")] = Path("params.yaml")) -> None:
    """Check a params file without running anything; no network is needed."""
    from psclap.config import load_params
    from psclap.corpora import build_corpus
    from psclap.models.choice import check_encoders

    params = load_params(path)
    build_corpus(params.corpus.name, params.corpus.options)
    check_encoders(params.model)
    typer.echo(f"{path} is valid: corpus {params.corpus.name}, variants {', '.join(params.train)}")


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


def _embedder(model: str) -> Embedder:
    with uncollected_imports():
        from psclap.embedding import Embedder

    return Embedder(model)


def _print(rows: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(rows, indent=2, default=str))
        return
    header = list(rows[0])
    cells = [header, *([_cell(row[name]) for name in header] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(header))]
    for row in cells:
        typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _cell(value: Any) -> str:
    return f"{value:+.4f}" if isinstance(value, float) else str(value)


def main() -> None:
    """Runs the command; bad input ends it with one sentence and status 1, Ctrl-C with 130."""
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    try:
        app()
    except PsclapError as error:
        sys.exit(f"error: {error}")
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
