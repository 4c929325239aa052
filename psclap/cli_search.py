"""`psclap search` and `psclap index`: clips by description, or by a clip like them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from psclap.cli_common import AsJson, load_embedder, print_rows
from psclap.errors import PsclapError
from psclap.startup import uncollected_imports

if TYPE_CHECKING:
    from psclap.embedding import Embedder
    from psclap.search import EmbeddedCorpus

search_app = typer.Typer()

_SHOWN = ("key", "start_s", "end_s")


@search_app.command()
def search(
    corpus: Annotated[str, typer.Argument(help="An index, or an output of the scoring job (folder or URL).")],
    captions: Annotated[list[str] | None, typer.Argument(help="What to look for; several are several queries.")] = None,
    audio: Annotated[list[str] | None, typer.Option(help="A file or URL: find speech like this.")] = None,
    top: Annotated[int, typer.Option(min=1, help="How many clips for each query.")] = 10,
    where: Annotated[
        str | None, typer.Option(help="A filter, such as: speaker = 'amy' and 'whispered' in situational_tags")
    ] = None,
    columns: Annotated[str | None, typer.Option(help="Columns to show, separated by commas.")] = None,
    windows: Annotated[bool, typer.Option("--windows", help="Search an output's windows, not its clips.")] = False,
    probes: Annotated[
        int | None, typer.Option(min=1, help="Lists of the approximate index to look into: more find more.")
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Leave the approximate index aside.")] = False,
    model: Annotated[str | None, typer.Option(help="Default: the model that made the embeddings.")] = None,
    as_json: AsJson = False,
) -> None:
    """The clips of an embedded corpus that fit a caption best, or sound most like an audio file."""
    with uncollected_imports():
        from psclap.search import EmbeddedCorpus

    texts, files = captions or [], audio or []
    if not texts and not files:
        raise PsclapError("nothing to look for; give a caption, or --audio with a file")
    embedded = EmbeddedCorpus.load(corpus, windows)
    shown = [name.strip() for name in columns.split(",") if name.strip()] if columns else None
    queries = _embed(_embedder_of(embedded, model), texts, files)
    found = embedded.search_many(queries, top, where=where, columns=shown, probes=probes, exact=exact)
    rows = [
        ({"query": query} if len(found) > 1 else {}) | (clip if as_json else _row(clip, shown))
        for query, clips in zip([*texts, *files], found, strict=True)
        for clip in clips
    ]
    if rows or as_json:
        print_rows(rows, as_json)
    else:
        typer.echo("no clips" + (" that the filter leaves" if where else ""))


def _embedder_of(corpus: EmbeddedCorpus, model: str | None) -> Embedder:
    """The Embedder for the queries; whoever names a model may use other weights, such as a bf16 export's."""
    from psclap.models.fetch import fetch, weights_sha256

    folder = fetch(model or corpus.model)
    embedder = load_embedder(str(folder))
    if weights_sha256(folder) != corpus.weights_sha256:
        if model is None:
            raise PsclapError(
                f"{corpus.model} has other weights now than those that made the embeddings; score the corpus anew, or "
                "name the model with --model"
            )
        typer.echo(f"note: {model} has other weights than those that made the embeddings", err=True)
    return embedder


def _embed(embedder: Embedder, texts: list[str], files: list[str]) -> Any:
    """(Q, D) embeddings of the texts, then of the audio files."""
    import numpy as np

    return np.concatenate([embedder.embed_text(texts), embedder.embed_files(files)])


def _row(clip: dict[str, Any], columns: list[str] | None) -> dict[str, Any]:
    """What the table shows of a clip: the score, and the columns asked for, or its key and tags."""
    row = {"score": round(clip["score"], 4)}
    if columns is not None:
        return row | {name: clip[name] for name in columns}
    tags = [*(clip.get("intrinsic_tags") or []), *(clip.get("situational_tags") or [])]
    return row | {name: clip[name] for name in _SHOWN if name in clip} | {"tags": tags}


@search_app.command()
def index(
    output: Annotated[str, typer.Argument(help="An output of the scoring job: a folder or a URL.")],
    folder: Annotated[
        Path | None, typer.Argument(help="The index to make. Default: its name with .index, beside it or here.")
    ] = None,
    windows: Annotated[bool, typer.Option("--windows", help="Of its windows, not its clips.")] = False,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="With an approximate index, by faiss: for millions of rows.")
    ] = False,
) -> None:
    """Make the index of scored clips, which `psclap search` opens in a moment."""
    with uncollected_imports():
        from psclap.search import build_index

    folder = folder or _default_folder(output, windows)
    facts = build_index(output, folder, windows, approximate)
    size = sum(facts["bytes"].values())
    typer.echo(f"{folder}: {facts['rows']:,} rows of {facts['dim']} dimensions in {facts['dtype']}, {size:,} bytes")
    if measured := facts.get("approximate"):
        recalls = ", ".join(f"{probes}: {recall:.3f}" for probes, recall in measured["recall_at_10"].items())
        typer.echo(
            f"approximate ({measured['factory']}): recall at 10, with rows as queries, by the number of probes: "
            f"{recalls}; {measured['probes']} is the default"
        )


def _default_folder(output: str, windows: bool) -> Path:
    from psclap.storage import is_remote

    name = output.rstrip("/").rsplit("/", 1)[-1] + (".windows.index" if windows else ".index")
    return Path(name) if is_remote(output) else Path(output).with_name(name)
