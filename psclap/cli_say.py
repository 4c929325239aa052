"""`psclap say`: text to sound, in the manner that fits a style best."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from psclap.cli_common import DEFAULT_MODEL, AsJson, Model, load_embedder, print_rows
from psclap.errors import PsclapError
from psclap.files import check_folder_writable, write_json
from psclap.startup import uncollected_imports

say_app = typer.Typer()

DEFAULT_TTS = "models:/psclap-tts-cast@champion"
_SHOWN = 5


@say_app.command("say")
def say(
    text: Annotated[str, typer.Argument(help="What to say.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The file to write: .wav, .flac, .ogg or .mp3.")],
    style: Annotated[str, typer.Option(help="A description, such as 'a deep, slow voice'; needed unless -n 1.")] = "",
    count: Annotated[int, typer.Option("-n", "--candidates", min=1, help="Of so many candidates the best.")] = 8,
    tts: Annotated[str, typer.Option(help="A Clip-TTS: a folder, a models:/ URI, or a name on the Hub.")] = DEFAULT_TTS,
    model: Model = DEFAULT_MODEL,
    speaker: Annotated[str | None, typer.Option(help="Default: any of the model's.")] = None,
    styles: Annotated[
        str | None, typer.Option(help="Tags divided by commas, such as slow,soft; default: any that clips had.")
    ] = None,
    language: Annotated[str | None, typer.Option(help="espeak-ng's name; default: the model's first.")] = None,
    vocoder: Annotated[str, typer.Option(help="griffin-lim, a folder, or a name on the Hub.")] = "griffin-lim",
    keep: Annotated[Path | None, typer.Option(help="A folder to write all candidates to.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Other candidates for another seed.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Say a text N times, in manners drawn by chance, and write the one that fits a style best.

    Scores and manners of all candidates go to a JSON file beside the sound.
    """
    with uncollected_imports():
        from psclap import audio
        from psclap.tts.best_of_n import best_of_n
        from psclap.tts.say import TextToSpeech
    audio.check_written_kind(output)
    for folder in (output.parent, *([keep] if keep else [])):
        check_folder_writable(folder)
    if count > 1 and not style:
        raise PsclapError(f"-n {count}: of several candidates the best is chosen by --style; give one, or -n 1")
    speech = TextToSpeech(tts, vocoder)
    tags = None if styles is None else [name.strip() for name in styles.split(",") if name.strip()]
    manners = speech.manners(count, seed, speaker, tags)
    if style:
        said = best_of_n(speech, load_embedder(model), text, style, manners, language)
        rows, waves, best = said.rows(), said.waves, said.best
        for number, why in said.rejects.items():
            typer.echo(f"candidate {number} has no score and comes last: {why}", err=True)
    else:
        waves, best = [*speech.say(text, manners, language)], 0
        rows = [{"candidate": 0, **manners[0].to_dict()}]
    output.parent.mkdir(parents=True, exist_ok=True)
    audio.write(output, waves[best], speech.sample_rate_hz)
    asked = {"text": text, "style": style, "language": language, "tts": tts, "vocoder": vocoder, "seed": seed}
    write_json(output.with_suffix(".json"), {**asked, "model": model if style else None, "ranked": rows})
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        for number, wave in enumerate(waves):
            audio.write(keep / f"{number:02d}{output.suffix}", wave, speech.sample_rate_hz)
    print_rows(rows if as_json else [_shown(row) for row in rows[:_SHOWN]], as_json)
    if not as_json:
        more = f", {len(rows) - _SHOWN} more in it" if len(rows) > _SHOWN else ""
        typer.echo(f"{output}: candidate {best}; scores in {output.with_suffix('.json')}{more}")


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    shown: dict[str, Any] = {name: row[name] for name in ("candidate", "score", "speaker", "styles") if name in row}
    if shown.get("score", 0.0) is None:
        shown["score"] = "none"
    return {**shown, "pace": f"{row['pace']:.2f}", "semitones": f"{row['semitones']:+.1f}"}
