"""The `psclap` command: score, classify and search with a trained model; check data sets and configurations."""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from psclap.cli_checkpoint import checkpoint_app
from psclap.cli_data import data_app
from psclap.cli_export import export_app
from psclap.errors import AudioError, PsclapError
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

Audio = Annotated[list[Path], typer.Argument(help="Audio files of any rate (wav, flac, ogg, mp3).")]
Model = Annotated[str, typer.Option(help="A checkpoint folder, or models:/NAME/VERSION or models:/NAME@ALIAS.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command()
def score(
    audio: Audio,
    text: Annotated[list[str], typer.Option(help="A caption; give --text several times for several.")],
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
) -> None:
    """Cosine of every audio file with every caption."""
    embedder = _embedder(model)
    cosines = _embed_files(embedder, audio) @ embedder.embed_text(text).T
    rows = [
        {"audio": str(path), "text": caption, "score": round(float(cosine), 4)}
        for path, of_path in zip(audio, cosines, strict=True)
        for caption, cosine in zip(text, of_path, strict=True)
    ]
    _print(rows, as_json)


@app.command()
def classify(
    audio: Audio,
    tags: Annotated[str, typer.Option(help="Tags separated by commas, or an attribute's name, such as texture.")],
    model: Model = DEFAULT_MODEL,
    as_json: AsJson = False,
) -> None:
    """The nearest of the candidate tags for every audio file, with the cosines of all."""
    from psclap.evaluation.classification import classify as nearest
    from psclap.tags import default_prompt, resolve_candidates

    candidates = resolve_candidates(name.strip() for name in tags.split(",") if name.strip())
    embedder = _embedder(model)
    speech = _embed_files(embedder, audio)
    prompts = embedder.embed_text([default_prompt(tag) for tag in candidates])
    rows = [
        {"audio": str(path), "tag": candidates[best]}
        | {tag: round(float(cosine), 4) for tag, cosine in zip(candidates, cosines, strict=True)}
        for path, best, cosines in zip(audio, nearest(speech, prompts), speech @ prompts.T, strict=True)
    ]
    _print(rows, as_json)


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
    folder = _fetch(model) if ":/" in model else Path(model)
    with uncollected_imports():
        from psclap.embedding import Embedder

    return Embedder(folder)


def _fetch(uri: str) -> Path:
    """The local folder of a model URI. Who can fetch which scheme is looked up among the installed packages,
    for the library itself knows no registry.
    """
    scheme = uri.split(":/", 1)[0]
    for fetcher in importlib.metadata.entry_points(group="psclap.model_fetchers", name=scheme):
        return fetcher.load()(uri)
    raise PsclapError(f"no installed package can fetch {uri!r}; give a checkpoint folder or a models:/ URI")


def _embed_files(embedder: Embedder, paths: Sequence[Path]) -> Any:
    from psclap import audio

    def load(path: Path) -> Any:
        try:
            return audio.load(path, embedder.sample_rate_hz)
        except AudioError as error:
            raise PsclapError(f"{path}: {error}") from error

    return embedder.embed_audio(load(path) for path in paths)


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
