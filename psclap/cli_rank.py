"""`psclap rank`: of the candidates of every prompt, the one that fits it best."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from psclap.cli_common import DEFAULT_MODEL, Model, load_embedder
from psclap.files import refuse_existing
from psclap.startup import uncollected_imports

if TYPE_CHECKING:
    from psclap.embedding import Embedder

rank_app = typer.Typer()


@rank_app.command("rank")
def rank(
    prompts: Annotated[
        Path, typer.Argument(help="A JSONL file, or a folder with iter_1/audios/0.wav, ... (docs/reward.md).")
    ],
    output: Annotated[Path, typer.Option(help="The folder to make; it must not exist.")],
    model: Model = DEFAULT_MODEL,
    text_weight: Annotated[float, typer.Option(help="Of the cosine with the prompt's text.")] = 1.0,
    reference_weight: Annotated[float, typer.Option(help="Of the cosine with the prompt's reference clip.")] = 1.0,
    add: Annotated[list[str] | None, typer.Option(help="COLUMN:WEIGHT to add to the score, such as wer:-0.5.")] = None,
    gate: Annotated[
        list[str] | None, typer.Option(help="A bound on a column, such as 'wer<=0.1': candidates beyond it lose.")
    ] = None,
    judge: Annotated[
        str | None, typer.Option(help="A column, higher is better, to evaluate the reward by; not a part of it.")
    ] = None,
) -> None:
    """Rank the candidates of every prompt; write the selection with all scores, and copy the winners."""
    from psclap.evaluation.reward.prompts import read_prompts

    # What is wrong with the request shows before the model is loaded.
    listed = read_prompts(prompts)
    with uncollected_imports():
        from psclap.evaluation.reward.criteria import Gate, Reward, check_column, parse_addend
        from psclap.evaluation.reward.rank import rank as ranked
        from psclap.evaluation.reward.selection import check_judge, write_selection
    reward = Reward(
        text_weight, reference_weight, dict(map(parse_addend, add or ())), tuple(map(Gate.parse, gate or ()))
    )
    refuse_existing(output)
    check_judge(judge, reward)
    if judge is not None:
        check_column(listed, judge)
    embedder, origin = _load(model)
    _report(output, write_selection(output, ranked(embedder, listed, reward), reward, origin, judge))


def _load(model: str) -> tuple[Embedder, dict[str, str]]:
    """The model, and what the summary says of it."""
    from psclap.models.fetch import fetch, weights_sha256
    from psclap.storage import redacted

    folder = fetch(model)
    embedder = load_embedder(str(folder))
    return embedder, {"name": redacted(model), "weights_sha256": weights_sha256(folder)}


def _report(output: Path, summary: dict[str, Any]) -> None:
    typer.echo(f"{output}: {summary['chosen']} of {summary['prompts']} prompts have a winner")
    if summary["chosen_outside_gates"]:
        typer.echo(f"no candidate of {summary['chosen_outside_gates']} prompts is within all gates; the best was taken")
    for reason, count in summary["rejected_candidates"].items():
        typer.echo(f"rejected candidates: {count} {reason}")
    for failed in summary["failed_prompts"][:10]:
        typer.echo(f"no winner for {failed['id']}: {failed['reason']}")
    if "best_of_n" in summary:
        from psclap.evaluation.reward.report import sweep_table

        typer.echo("\n".join(["", *sweep_table(summary["best_of_n"]["sizes"], summary["best_of_n"]["judge"])]))
