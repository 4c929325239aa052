"""`psclap evaluate` and `psclap compare`: how a model does on a test set, and which of two does better."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from psclap.cli_common import AsJson
from psclap.evaluation import PAIRED_RESAMPLES, RESAMPLES
from psclap.startup import uncollected_imports

if TYPE_CHECKING:
    from psclap.evaluation.compare import Difference
    from psclap.evaluation.evaluate import TestSets

evaluate_app = typer.Typer()

Seed = Annotated[int, typer.Option(min=0, help="Of the resamples.")]

_SHOWN = ("R@1", "R@10", "MRR", "UAR")


@evaluate_app.command("evaluate")
def evaluate(
    model: Annotated[str, typer.Argument(help="A model folder, a models:/ URI, or a name on the Hub.")],
    shards: Annotated[str, typer.Argument(help="A folder of shards, or a URL.")],
    output: Annotated[Path, typer.Option(help="The folder to write the report to; a report in it is replaced.")],
    split: Annotated[Literal["train", "val", "test"], typer.Option(help="Which clips.")] = "test",
    caption_set: Annotated[
        list[str] | None, typer.Option(help="Give it several times for several. Default: all that the split has.")
    ] = None,
    attribute: Annotated[
        list[str] | None, typer.Option(help="As --caption-set. Default: all of which the split has two tags or more.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="No prompt ensembles, no combinations of attributes.")] = False,
    resample: Annotated[
        Literal["speaker", "clip"] | None, typer.Option(help="For the intervals. Default: speakers, if there are 10.")
    ] = None,
    resamples: Annotated[int, typer.Option(help="How many, for the intervals.")] = RESAMPLES,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Evaluate a model: retrieval in both directions and zero-shot classification, with confidence intervals."""
    with uncollected_imports():
        from psclap.embedding import Embedder
        from psclap.evaluation.run import evaluate_to_folder
        from psclap.evaluation.tables import model_tables

    test_sets = _test_sets(shards, split, caption_set, attribute, resample, quick)
    results = evaluate_to_folder(output, model, test_sets, Embedder(model), resamples=resamples, seed=seed)
    typer.echo(json.dumps(results, indent=2, allow_nan=False) if as_json else model_tables(results))
    if not as_json:
        typer.echo(f"\nThe report is in {output}")


def _test_sets(
    shards: str,
    split: Literal["train", "val", "test"],
    caption_sets: list[str] | None,
    attributes: list[str] | None,
    unit: Literal["speaker", "clip"] | None,
    quick: bool,
) -> TestSets:
    """What to score. Raises PsclapError for what does not exist or cannot be scored."""
    from psclap.config import EvaluateConfig
    from psclap.evaluation.classification import carried_attributes
    from psclap.evaluation.evaluate import TestSets
    from psclap.evaluation.retrieval import carried_caption_sets, check_caption_set
    from psclap.shards.index import ShardIndex

    index = ShardIndex(shards)
    config = EvaluateConfig(
        split=split,
        caption_sets=tuple(map(check_caption_set, caption_sets or carried_caption_sets(index, split))),
        attributes=tuple(attributes or carried_attributes(index, split)),
    )
    return TestSets(index, config, unit, extras=not quick)


@evaluate_app.command("compare")
def compare(
    report_a: Annotated[Path, typer.Argument(help="A report folder of `psclap evaluate`.")],
    report_b: Annotated[Path, typer.Argument(help="Another, of the same test sets.")],
    resamples: Annotated[int, typer.Option(help="How many, for the intervals.")] = PAIRED_RESAMPLES,
    seed: Seed = 0,
    as_json: AsJson = False,
) -> None:
    """Compare two models query by query: differences with 95 % intervals and p-values (paired bootstrap)."""
    from psclap.evaluation.compare import compare_reports
    from psclap.markdown import table

    found = compare_reports(report_a, report_b, resamples, seed)
    if as_json:
        typer.echo(json.dumps(asdict(found), indent=2, allow_nan=False))
        return
    typer.echo(f"a: {found.a} ({report_a})\nb: {found.b} ({report_b})")
    typer.echo(f"In %; b - a with its 95 % interval and p-value, by paired bootstrap over {found.unit}s.\n")
    header = ["what", "set", "direction", "metric", "a", "b", "b - a", "95 %", "p"]
    typer.echo("\n".join(table(header, [_row(of) for of in found.differences if of.metric in _SHOWN])))
    if found.left_out:
        typer.echo(f"\nNot in both: {', '.join(found.left_out)}")


def _row(of: Difference) -> list[str]:
    values = [f"{100 * value:.1f}" for value in (of.a, of.b)]
    ends = f"[{100 * of.low:+.1f}, {100 * of.high:+.1f}]"
    p_value = f"{of.p_value:.4f}"
    return [of.kind, of.set, of.direction, of.metric, *values, f"{100 * of.difference:+.1f}", ends, p_value]
