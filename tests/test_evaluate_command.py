"""`psclap evaluate` and `psclap compare` as processes: real shards, small models, reports on disk."""

import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from commands import psclap
from conftest import SHARDING, shard
from small_model import save_small_model
from test_evaluation import made_up

from psclap.config import EvaluateConfig
from psclap.embedding import Embedder
from psclap.errors import PsclapError
from psclap.evaluation.compare import Comparison, compare_reports
from psclap.evaluation.evaluate import TestSets
from psclap.evaluation.report import headline, write_report
from psclap.evaluation.run import evaluate_to_folder
from psclap.evaluation.tables import summary_table
from psclap.schema import CAPTION_SETS, Utterance
from psclap.shards.index import ShardIndex

FILES = {
    *("evaluation.json", "queries.parquet", "report.html", "recall.csv", "tags.csv", "composition.csv"),
    *("recall.png", "confusion.png", "composition.png"),
}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def report(model: Path, mini_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report that the command writes by itself, of everything that the shards offer."""
    folder = tmp_path_factory.mktemp("reports") / "whole"
    result = psclap("evaluate", model, mini_shards, "--output", folder)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    (folder.parent / "printed").write_text(result.stdout)
    return folder


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "evaluation.json").read_text())


def test_a_report_holds_all_that_the_test_set_offers(report: Path, model: Path, mini_shards: Path) -> None:
    results = read(report)
    names = {path.name for path in report.iterdir()}
    attributes = ("texture", "volume", "situational", "gender", "pitch-level", "rate", "phonation", "intonation")
    assert names == FILES | {f"confusion_{name}.csv" for name in attributes}
    test_sets = TestSets(ShardIndex(mini_shards), EvaluateConfig("test", CAPTION_SETS, attributes))
    expected = test_sets.evaluate(Embedder(model))
    assert results["model"] == json.loads(json.dumps(expected.with_intervals()))
    assert results["chance"] == json.loads(json.dumps(test_sets.chance()))
    assert pq.read_table(report / "queries.parquet").equals(expected.queries)
    assert results["about"]["model"] == str(model)
    assert (results["about"]["unit"], results["about"]["units"]) == ("speaker", 24)


def test_what_is_printed_is_what_the_report_says(report: Path) -> None:
    printed, results = (report.parent / "printed").read_text(), read(report)
    found = results["model"]["retrieval"]["combined"]["audio_to_text"]
    low, high = found["intervals"]["R@1"]
    (line,) = [line for line in printed.splitlines() if line.startswith("| combined    | speech to caption")]
    assert f"| {100 * found['R@1']:.1f} [{100 * low:.1f}, {100 * high:.1f}]" in line
    gender = results["model"]["classification"]["gender"]
    (line,) = [line for line in printed.splitlines() if line.startswith("| gender")]
    assert f"| {100 * gender['UAR']:.1f} [" in line
    assert f"| {100 * gender['ensemble']['UAR']:.1f} [" in line
    assert "bootstrap over 24 speakers" in printed
    assert printed.endswith(f"The report is in {report}\n")


def test_chosen_sets_only_as_json_and_a_report_may_be_replaced(model: Path, mini_shards: Path, tmp_path: Path) -> None:
    arguments = ["--output", tmp_path / "r", "--split", "val", "--caption-set", "intrinsic", "--attribute", "gender"]
    arguments += ["--quick", "--resample", "clip", "--resamples", "100", "--json"]
    for _ in range(2):
        result = psclap("evaluate", model, mini_shards, *arguments)
        assert result.returncode == 0, result.stderr
    printed = json.loads(result.stdout)
    assert printed == read(tmp_path / "r")
    assert {*printed["model"]} == {"retrieval", "classification"}
    assert {*printed["model"]["retrieval"]} == {"intrinsic"}
    assert {*printed["model"]["classification"]} == {"gender"}
    assert "ensemble" not in printed["model"]["classification"]["gender"]
    assert (printed["about"]["split"], printed["about"]["unit"], printed["about"]["clips"]) == ("val", "clip", 24)
    assert not list(tmp_path.glob("*partial*"))


def test_remote_shards_are_evaluated(
    model: Path, report: Path, mini_corpus: tuple[Path, list[Utterance]], tmp_path: Path, s3_server: str
) -> None:
    test_clips = [u for u in mini_corpus[1] if u.split == "test"]
    shard(test_clips, tmp_path / "shards", SHARDING)
    import fsspec

    fsspec.filesystem("s3").put(str(tmp_path / "shards"), f"{s3_server}/evaluate", recursive=True)
    result = psclap("evaluate", model, f"{s3_server}/evaluate", "--output", tmp_path / "remote")
    assert result.returncode == 0, result.stderr
    remote, local = read(tmp_path / "remote"), read(report)
    assert remote["about"]["test_sets"] == local["about"]["test_sets"]
    assert remote["model"]["retrieval"] == local["model"]["retrieval"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{model}", "{nowhere}", "--output", "out"], "no shards in"),
        (["{nowhere}", "{shards}", "--output", "out"], "no checkpoint folder"),
        (["{model}", "{shards}", "--output", "out", "--attribute", "loudness"], "['loudness'] must be among"),
        (["{model}", "{shards}", "--output", "out", "--attribute", "accent"], "'accent' cannot be scored on test"),
        (["{model}", "{shards}", "--output", "out", "--caption-set", "all"], "no caption set 'all'"),
        (["{model}", "{shards}", "--output", "out", "--resamples", "5"], "5 resamples are too few"),
        (["{model}", "{shards}", "--output", "{mine}"], "files that are no report"),
    ],
)
def test_bad_input_ends_with_one_sentence(
    model: Path, mini_shards: Path, tmp_path: Path, arguments: list[str], message: str
) -> None:
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    values = {"model": model, "shards": mini_shards, "nowhere": tmp_path / "nowhere", "mine": mine}
    result = psclap("evaluate", *(argument.format(**values) for argument in arguments), cwd=tmp_path)
    assert result.returncode == 1
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (mine / "thesis.txt").read_text() == "years of work"


@pytest.fixture(scope="module")
def made_up_reports(mini_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports of models that hear as much as their names say, and one that is as good as "some" by other luck."""
    test_sets = TestSets(ShardIndex(mini_shards), EvaluateConfig("test", ("combined",), ("gender", "texture")))
    folders = {}
    for name, know, seed in (("some", 0.3, 0), ("as much", 0.3, 1), ("more", 0.6, 2)):
        evaluation = test_sets.score(made_up(test_sets, know, seed))
        folders[name] = tmp_path_factory.mktemp("report")
        about = {"model": name, "unit": test_sets.clips.unit, "test_sets": test_sets.fingerprints()}
        results = {"about": about, "model": evaluation.with_intervals(100), "chance": test_sets.chance()}
        write_report(folders[name], name, results, evaluation.queries)
    return folders


def by_place(found: Comparison) -> dict[tuple[str, str, str, str], Any]:
    return {(of.kind, of.set, of.direction, of.metric): of for of in found.differences}


RECALL = ("retrieval", "combined", "audio_to_text", "R@10")


def test_a_better_model_is_told_from_an_equal_one(made_up_reports: dict[str, Path]) -> None:
    better = by_place(compare_reports(made_up_reports["some"], made_up_reports["more"]))
    equal = by_place(compare_reports(made_up_reports["some"], made_up_reports["as much"]))
    assert better[RECALL].low > 0.05
    assert better[RECALL].p_value < 0.01
    assert equal[RECALL].low < 0 < equal[RECALL].high
    assert equal[RECALL].p_value > 0.05
    rank = better[*RECALL[:3], "mean_rank"]
    assert not rank.higher_is_better
    assert rank.high < 0 < rank.gain[1] <= rank.gain[0] <= rank.gain[2]
    for of in better.values():
        assert of.difference == pytest.approx(of.b - of.a)
        assert of.low <= of.high
    results = json.loads((made_up_reports["more"] / "evaluation.json").read_text())["model"]
    assert better[RECALL].b == pytest.approx(results["retrieval"]["combined"]["audio_to_text"]["R@10"])
    ensemble = better["classification_ensemble", "texture", "audio_to_text", "UAR"]
    assert ensemble.b == pytest.approx(results["classification"]["texture"]["ensemble"]["UAR"])


def test_the_other_way_round_is_the_same_with_other_signs(made_up_reports: dict[str, Path]) -> None:
    there = by_place(compare_reports(made_up_reports["some"], made_up_reports["more"]))
    back = by_place(compare_reports(made_up_reports["more"], made_up_reports["some"]))
    for place, of in there.items():
        assert (back[place].difference, back[place].p_value) == (pytest.approx(-of.difference), of.p_value)
        assert [back[place].low, back[place].high] == pytest.approx([-of.high, -of.low])


def test_a_model_does_not_differ_from_itself(made_up_reports: dict[str, Path]) -> None:
    for of in compare_reports(made_up_reports["some"], made_up_reports["some"]).differences:
        assert (of.difference, of.low, of.high, of.p_value) == (0, 0, 0, 1)


def test_the_command_says_what_the_function_finds(report: Path, made_up_reports: dict[str, Path]) -> None:
    some, more = made_up_reports["some"], made_up_reports["more"]
    result = psclap("compare", some, more, "--json")
    assert result.returncode == 0, result.stderr
    found = compare_reports(some, more)
    assert json.loads(result.stdout)["differences"][0]["difference"] == pytest.approx(found.differences[0].difference)
    of = by_place(found)[RECALL]
    table = psclap("compare", some, more).stdout
    (line,) = [line for line in table.splitlines() if "R@10" in line and "audio_to_text" in line]
    assert f"[{100 * of.low:+.1f}, {100 * of.high:+.1f}]" in line
    assert f"{of.p_value:.4f}" in line
    assert "by paired bootstrap over speakers" in table
    wider = psclap("compare", some, report)
    assert wider.returncode == 0, wider.stderr
    (line,) = [line for line in wider.stdout.splitlines() if line.startswith("Not in both: ")]
    assert "retrieval/intrinsic/audio_to_text" in line


def test_reports_of_other_test_sets_are_refused(
    report: Path, model: Path, mini_shards: Path, tmp_path: Path, made_up_reports: dict[str, Path]
) -> None:
    index = ShardIndex(mini_shards)
    embedder = Embedder(model)
    config = EvaluateConfig("val", ("combined",), ("gender",))
    evaluate_to_folder(tmp_path / "val", "val", TestSets(index, config, extras=False), embedder)
    with pytest.raises(PsclapError, match="different test sets: classification/gender, retrieval/combined differ"):
        compare_reports(report, tmp_path / "val")
    evaluate_to_folder(tmp_path / "rate", "rate", TestSets(index, EvaluateConfig("test", (), ("rate",))), embedder)
    with pytest.raises(PsclapError, match="different test sets: they have none in common"):
        compare_reports(tmp_path / "rate", made_up_reports["some"])
    clips = TestSets(index, EvaluateConfig("test", (), ("rate",)), "clip")
    evaluate_to_folder(tmp_path / "clips", "clips", clips, embedder)
    with pytest.raises(PsclapError, match=r"resamples speakers and .* clips"):
        compare_reports(tmp_path / "rate", tmp_path / "clips")


def test_what_is_no_report_is_refused(report: Path, tmp_path: Path) -> None:
    with pytest.raises(PsclapError, match=r"is no report: evaluation\.json is missing"):
        compare_reports(report, tmp_path)
    broken = tmp_path / "broken"
    shutil.copytree(report, broken)
    (broken / "queries.parquet").write_bytes(b"PAR1")
    with pytest.raises(PsclapError, match="damaged, or of another version"):
        compare_reports(report, broken)
    (broken / "evaluation.json").write_text('{"model": {}}')
    with pytest.raises(PsclapError, match="damaged, or of another version"):
        compare_reports(report, broken)


def test_the_summary_puts_variants_side_by_side(model: Path, mini_shards: Path, tmp_path: Path) -> None:
    config = EvaluateConfig("test", ("intrinsic", "combined"), ("gender", "rate"))
    embedder = Embedder(model)
    results = evaluate_to_folder(tmp_path / "r", "one", TestSets(ShardIndex(mini_shards), config), embedder, embedder)
    numbers = headline(results)
    scores = results["model"]["retrieval"]["intrinsic"]["audio_to_text"]
    entry = numbers["intrinsic"]["audio_to_text"]
    assert [entry["R@1_low"], entry["R@1_high"]] == pytest.approx(scores["intervals"]["R@1"], abs=1e-4)
    assert entry["untrained_R@1"] == entry["R@1"]
    lines = summary_table({"one": numbers, "two": numbers}).splitlines()
    assert lines[2].split("|")[1:-1] == [" variant   ", " intrinsic set ", " combined set "]
    assert [line.split()[1] for line in lines[4:8]] == ["one", "two", "untrained", "chance"]
    assert f"| {100 * entry['R@1']:.1f} / {100 * entry['R@10']:.1f} " in lines[4]
    assert sum("[" in line for line in lines) == 4  # two variants' R@1 and UAR
    assert sum(line.startswith("| one, if told one by one") for line in lines) == 1
