"""Drift: equal data show none beyond the stated level, shifted data do, and what cannot be compared is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from pipelines.retrain import has_drifted
from pipelines.tracking import TrackingStore
from psclap.cli import app
from psclap.cli_drift import verdict
from psclap.drift import Drift, compare_labels, compare_scores
from psclap.drift.dealing import Units
from psclap.drift.distances import distances
from psclap.drift.measures import moved, of_numbers, of_words, one_hot, stability_index
from psclap.drift.result import Measured, Side
from psclap.drift.samples import Sample
from psclap.errors import PsclapError
from psclap.retraining.config import RetrainConfig
from psclap.scoring.tables import Scored, Statistics, embedding_column, rejects_table, words_column, write
from psclap.strict import from_mapping

DIM = 6
LEVEL = 0.05


def sample(rng: np.random.Generator, speakers: int, clips_each: int, shift: float = 0.0) -> Sample:
    """Clips of speakers who each have a voice of their own, which half of a clip's variance is."""
    voices = rng.normal(size=(speakers, DIM)).repeat(clips_each, axis=0)
    vectors = voices + rng.normal(size=voices.shape) + shift
    unit = np.arange(speakers).repeat(clips_each)
    return Sample(
        Side("memory", len(unit), len(unit), speakers),
        unit,
        numbers={("score", "deep"): vectors[:, 0], ("duration", "duration_s"): np.exp(rng.normal(size=len(unit)))},
        words={("tag", "rate"): np.array(["slow", "fast"])[(vectors[:, 1] > 0).astype(int)].tolist()},
        embeddings=vectors.astype(np.float32),
    )


def drift_of(reference: Sample, new: Sample, deals: int = 99) -> Drift:
    measured, numbers = distances(reference, new, deals, seed=1)
    return Drift("scores", reference.side, new.side, "m", "0", "speaker", measured, numbers, deals, 1, LEVEL)


def share_that_drifts(pairs: list[tuple[Sample, Sample]]) -> float:
    return float(np.mean([drift_of(*pair).headline > 0 for pair in pairs]))


def each_a_unit(clips: Sample) -> Sample:
    return replace(clips, unit=np.arange(len(clips.unit)))


def test_equal_distributions_show_drift_no_more_often_than_the_level_says() -> None:
    """New speakers of the same kind, 100 times; with clips for units there would be false alarms most of the time."""
    rng = np.random.default_rng(77)
    pairs = [(sample(rng, 24, 8), sample(rng, 8, 8)) for _ in range(100)]
    assert share_that_drifts(pairs) <= 0.1  # at LEVEL 0.05; 54 of 1000 in a longer run
    assert share_that_drifts([(each_a_unit(a), each_a_unit(b)) for a, b in pairs[:20]]) > 0.5


@pytest.mark.parametrize(("reference", "new"), [((40, 6), (30, 1)), ((100, 1), (6, 20))])
def test_speakers_of_other_sizes_do_not_show_drift_either(reference: tuple[int, int], new: tuple[int, int]) -> None:
    rng = np.random.default_rng(2)
    assert share_that_drifts([(sample(rng, *reference), sample(rng, *new)) for _ in range(40)]) <= 0.1


def test_a_shift_is_found_where_it_is() -> None:
    rng = np.random.default_rng(0)
    found = drift_of(sample(rng, 40, 5), sample(rng, 20, 5, shift=2.0), deals=199)
    by_name = {(one.kind, one.name): one for one in found.measured}
    assert found.drifted
    assert found.headline > 0.3
    assert (found.worst.kind, found.worst.name) == ("embedding", "axis 1")  # the direction of the shift
    assert by_name["score", "deep"].mean_new > by_name["score", "deep"].mean_reference + 1
    assert by_name["score", "deep"].p_value == 1 / 200
    assert by_name["tag", "rate"].p_value < LEVEL
    assert by_name["duration", "duration_s"].p_value > LEVEL
    shift, far = found.numbers
    assert (shift.name, far.name) == ("mean_shift", "far_share")
    assert shift.new > 3 * shift.by_chance
    assert far.new > far.reference + far.by_chance


def test_a_handful_of_new_clips_starts_nothing_but_many_of_them_do() -> None:
    rng = np.random.default_rng(0)
    reference, few, many = sample(rng, 60, 5), sample(rng, 1, 5, 1.0), sample(rng, 60, 5, 1.0)
    of_one = drift_of(reference, few)
    assert not of_one.drifted
    assert of_one.can_tell  # one of 61 speakers, at a level of 0.05
    assert not replace(of_one, level=0.01).can_tell
    assert "60 and 1 speakers are too few" in verdict(replace(of_one, level=0.01))
    assert drift_of(reference, many).drifted


def test_a_difference_that_is_sure_but_small_is_no_drift() -> None:
    rng = np.random.default_rng(0)
    old, new = (each_a_unit(sample(rng, 4000, 1, shift)) for shift in (0.0, 0.25))
    found = drift_of(old, new)
    assert 0 < found.headline < found.threshold
    assert not found.drifted
    assert replace(found, threshold=found.headline / 2).drifted


def test_dealing_fills_every_place_with_whole_speakers() -> None:
    sizes = [3, 3, 3, 1, 5]
    reference = np.arange(3).repeat(sizes[:3])
    units = Units.of(reference, np.arange(2).repeat(sizes[3:]), np.random.default_rng(0))
    speaker = np.arange(5).repeat(sizes)
    held = set()
    for seed in range(200):
        places = np.split(speaker[units.deal(np.random.default_rng(seed))], np.cumsum(sizes)[:-1])
        assert all(len(set(place)) == 1 for place in places)
        assert sorted(place[0] for place in places) == [*range(5)]
        held.add(places[3][0])
    assert held == {*range(5)}
    clips = units.deal(np.random.default_rng(1))
    assert len(set(clips[:3])) == min(3, sizes[speaker[clips[0]]])  # none twice where the speaker has enough


def test_distances_of_histograms() -> None:
    reference, new = np.array([[0.2, 0.8, 0.0]]), np.array([[0.2, 0.3, 0.5]])
    assert moved(reference, new) == pytest.approx([0.5])
    assert np.isfinite(stability_index(reference, new, (50, 50)))
    assert stability_index(reference, reference, (10**6, 10**6)) == pytest.approx([0.0])
    # Equal distributions: about (B - 1)(1/n + 1/m).
    rng = np.random.default_rng(0)
    drawn = [rng.multinomial(n, [0.1] * 10, size=4000) / n for n in (500, 2000)]
    assert stability_index(*drawn, (500, 2000)).mean() == pytest.approx(9 * (1 / 500 + 1 / 2000), rel=0.05)


def test_numbers_fall_into_tenths_of_the_reference_or_bins_of_their_own() -> None:
    rng = np.random.default_rng(0)
    shares = one_hot([of_numbers("a", "score", rng.normal(size=5000))]).mean(0)
    assert shares == pytest.approx(0.1, abs=0.001)
    same = of_numbers("b", "duration", np.array([2.0] * 30 + [1.0, 3.0, np.nan]))
    assert (same.bins, same.codes.tolist()) == (["below 2", "2", "above 2", "missing"], [1] * 30 + [0, 2, 3])
    assert of_numbers("c", "score", np.full(3, np.nan)).codes.tolist() == [0, 0, 0]
    assert of_words("d", "tag", ["b", None, "a"]).bins == ["a", "b", "none"]


CAPTION = "a deep, raspy voice / läuft"


def write_output(
    folder: Path, clips: Sample, *, rejects: int = 0, drop: tuple[str, ...] = (), **summary: object
) -> Path:
    """A sample as the scoring job writes it, in two blocks."""
    vectors = clips.embeddings / np.linalg.norm(clips.embeddings, axis=1, keepdims=True)
    scores = pa.StructArray.from_arrays([pa.array(clips.numbers["score", "deep"], pa.float32())], [CAPTION])
    names = pa.array([f"spk-{unit}" for unit in clips.unit])
    columns = {
        "key": pa.array([f"clip-{row}" for row in range(len(vectors))]),
        "speaker": names,
        "duration_s": pa.array(clips.numbers["duration", "duration_s"]),
        "scores": scores,
        "tag_rate": words_column(clips.words["tag", "rate"]),
        "embedding": embedding_column(vectors, "float16"),
    }
    table = pa.table({name: column for name, column in columns.items() if name not in drop})
    half = len(vectors) // 2
    for number, part in enumerate((table.slice(0, half), table.slice(half))):
        write(str(folder), number, Scored(part, part.slice(0, 0), rejects_table(iter(())), Statistics()))
    told = {"model": "models:/m/1", "weights_sha256": "a" * 64, "captions": [CAPTION], "attributes": ["rate"]}
    told |= {"rejects": {"silent": rejects} if rejects else {}}
    (folder / "_summary.json").write_text(json.dumps(told | summary))
    return folder


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Scored clips: `old`, `same` of the same kind and `shifted`. Not to be changed."""
    folder, rng = tmp_path_factory.mktemp("outputs"), np.random.default_rng(3)
    return {
        "old": write_output(folder / "old", sample(rng, 40, 6), rejects=2),
        "same": write_output(folder / "same", sample(rng, 20, 6), rejects=1),
        "shifted": write_output(folder / "shifted", sample(rng, 20, 6, 2.0), rejects=60),
    }


def measures(found: Drift) -> dict[str, Measured]:
    return {f"{one.kind} {one.name}": one for one in found.measured}


def test_outputs_of_the_scoring_job_are_compared(outputs: dict[str, Path]) -> None:
    found = compare_scores(outputs["old"], outputs["shifted"])
    assert (found.unit, found.reference.units, found.new.clips, found.new.compared) == ("speaker", 40, 120, 120)
    assert found.drifted
    assert measures(found)[f"score {CAPTION}"].p_value == 1 / 1000
    assert {change.bin for change in measures(found)["tag rate"].changes} == {"slow", "fast"}
    assert len([one for one in found.measured if one.kind == "embedding"]) == DIM
    (rejects,) = [one for one in found.numbers if one.name == "reject_rate"]
    assert (rejects.reference, rejects.new) == (2 / 242, 60 / 180)
    assert rejects.p_value < 0.01
    assert not compare_scores(outputs["old"], outputs["same"]).drifted


def test_the_result_is_told_as_plain_numbers_and_is_the_same_again(outputs: dict[str, Path]) -> None:
    found = compare_scores(outputs["old"], outputs["shifted"], deals=99)
    assert found == compare_scores(outputs["old"], outputs["shifted"], deals=99)
    told = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert (told["drifted"], told["headline"], told["worst"]) == (True, found.headline, found.worst.title)
    assert told["model"] == "models:/m/1"
    logged = found.metrics()
    assert logged["drift/headline"] == found.headline
    assert logged["drift/tag/rate/moved"] == measures(found)["tag rate"].moved
    assert all(isinstance(value, float) for value in logged.values())
    long = [replace(found.measured[0], name="a very deep voice " * 30 + end) for end in ("today", "tomorrow")]
    names = replace(found, measured=long).metrics()
    assert len([name for name in names if name.endswith("/moved")]) == 2
    assert max(map(len, names)) < 200


def test_an_output_is_like_itself(outputs: dict[str, Path]) -> None:
    found = compare_scores(outputs["old"], outputs["old"])
    assert found.headline == 0
    assert {one.moved for one in found.measured} == {0.0}


def test_filters_choose_the_clips(outputs: dict[str, Path]) -> None:
    found = compare_scores(
        outputs["old"], outputs["same"], where="tag_rate = 'slow'", reference_where="duration_s > 0.1"
    )
    assert found.worst.name == "rate"
    assert found.new.clips < 120
    assert found.new.where == "tag_rate = 'slow'"
    assert all(one.name != "reject_rate" for one in found.numbers)


def test_of_many_clips_a_sample_is_compared(outputs: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psclap.drift.samples.CLIPS", 100)
    found = compare_scores(outputs["old"], outputs["shifted"], deals=99)
    assert (found.reference.clips, found.reference.compared, found.new.compared) == (240, 100, 100)
    assert found.drifted


def test_without_speakers_clips_are_units(outputs: dict[str, Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    new = write_output(tmp_path / "new", sample(rng, 20, 6), drop=("speaker",))
    assert compare_scores(outputs["old"], new, deals=99).unit == "clip"
    with pytest.raises(PsclapError, match="no column speaker; there are key, duration_s"):
        compare_scores(outputs["old"], new, unit="speaker")


@pytest.mark.parametrize(
    ("summary", "message"),
    [
        ({"weights_sha256": "b" * 64}, "scored differently: weights_sha256.*Score both with one model"),
        ({"captions": ["another"]}, "scored differently: captions"),
        ({"attributes": []}, r"scored differently: attributes: \['rate'\] and \[\]"),
    ],
)
def test_outputs_of_other_jobs_are_refused(
    outputs: dict[str, Path], tmp_path: Path, summary: dict[str, object], message: str
) -> None:
    other = write_output(tmp_path / "other", sample(np.random.default_rng(0), 3, 4), **summary)
    with pytest.raises(PsclapError, match=message):
        compare_scores(outputs["old"], other)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"where": "key = 'nobody'"}, "where key = 'nobody' has no clips to compare"),
        ({"where": "kee = 'x'"}, "no column"),
        ({"threshold": 1.5}, r"threshold 1.5 must lie in \[0, 1\)"),
        ({"threshold": float("nan")}, "threshold nan"),
        ({"level": 0.0}, "level 0.0"),
        ({"deals": 50}, "50 deals are too few for the level 0.01; give 100 or more"),
        ({"new": Path("/nowhere")}, "no output of the scoring job"),
    ],
)
def test_bad_questions_are_refused(outputs: dict[str, Path], arguments: dict, message: str) -> None:
    with pytest.raises(PsclapError, match=message):
        compare_scores(**{"reference": outputs["old"], "new": outputs["same"]} | arguments)


def test_an_output_without_clips_is_refused(outputs: dict[str, Path], tmp_path: Path) -> None:
    empty = write_output(tmp_path / "empty", replace(sample(np.random.default_rng(0), 0, 1)))
    with pytest.raises(PsclapError, match="has no clips"):
        compare_scores(outputs["old"], empty)


def test_the_command_says_what_moved_and_ends_by_the_rule(outputs: dict[str, Path], tmp_path: Path) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["drift", *arguments])
        return result.exit_code, result.output

    old, same, shifted = (str(outputs[name]) for name in ("old", "same", "shifted"))
    code, text = run(old, shifted)
    assert code == 0
    assert text.startswith("DRIFTED: headline 0.")
    assert "40" in text
    assert "share of clips that scoring could not use: 0.008 -> 0.333" in text
    assert max(map(len, text.splitlines())) <= 120
    assert run(old, shifted, "--fail-above", "0.1")[0] == 3
    assert run(old, shifted, "--fail-above", "0.99")[0] == 0
    code, text = run(old, same, "--fail-above", "0", "--json", "--output", str(tmp_path / "runs/drift.json"))
    assert (code, json.loads(text)["drifted"]) == (0, False)
    assert json.loads((tmp_path / "runs/drift.json").read_text()) == json.loads(text)
    code, text = run(old, same)
    assert text.startswith("no drift: chance explains every difference")


def test_labels_of_data_sets_are_compared(mini_shards: Path) -> None:
    found = compare_labels(mini_shards, mini_shards, deals=99)
    assert (found.reference.clips, found.new.clips, found.reference.where) == (96, 168, "split = 'train'")
    assert not found.drifted
    assert {"label whispered", "duration duration_s"} <= measures(found).keys()
    (there, _) = sorted(measures(found)["label whispered"].changes, key=lambda one: one.bin != "whispered")
    assert 0 < there.reference < 1
    with pytest.raises(PsclapError, match="split trian has no clips"):
        compare_labels(mini_shards, mini_shards, split="trian")
    result = CliRunner().invoke(app, ["drift", str(mini_shards), str(mini_shards), "--labels", "--split", "all"])
    assert "no drift" in result.output
    assert isinstance(CliRunner().invoke(app, ["drift", "a", "b", "--labels", "--where", "x"]).exception, PsclapError)


def test_drift_starts_a_retraining_and_is_noted_once(
    outputs: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = TrackingStore(f"sqlite:///{tmp_path}/mlflow.db", (tmp_path / "artifacts").as_uri())
    variant = {"model": "m", "policy": {"fixed": {"classification/gender/UAR": {"min": 0.5}}}}

    def starts(new: str, **limit: float) -> bool:
        drift = {"reference": str(outputs["old"]), "new": str(outputs[new]), **limit}
        sections = {"variants": {"v": variant}, "test_sets": {"fixed": {"shards": "s"}}, "drift": drift}
        return has_drifted(from_mapping(RetrainConfig, sections, "retrain"), store)

    assert not starts("same")
    assert starts("shifted")
    assert starts("shifted")
    assert not starts("shifted", start_above=0.99)
    assert json.loads((tmp_path / "runs/retrain/drift.json").read_text())["drifted"] is False
    runs = store.client().search_runs([store.experiment_id("psclap-retrain")])
    assert sorted(run.data.tags["psclap.drifted"] for run in runs) == ["false", "false", "true"]
    assert max(run.data.metrics["drift/headline"] for run in runs) > 0.3
    assert store.client().list_artifacts(runs[0].info.run_id)[0].path == "drift.json"
