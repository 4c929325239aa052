"""The model card of a real, small evaluation."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import yaml
from conftest import MINI_CORPUS, SHARDING, demo_without_voices, shard
from huggingface_hub import EvalResult, ModelCard
from mlflow import MlflowClient
from small_training import mini

from pipelines.registry import Card, fetch_model, register
from pipelines.tracking import TrackingStore
from psclap.config import PRESETS_FOLDER, Params, parse_params
from psclap.embedding import Embedder
from psclap.errors import ConfigError
from psclap.evaluation.evaluate import TestSets
from psclap.evaluation.report import headline
from psclap.evaluation.run import evaluate_to_folder
from psclap.files import sha256_file
from psclap.model_card.facts import Facts, corpus_names, count_parameters, shared_speakers, split_statistics
from psclap.model_card.metadata import base_models
from psclap.model_card.page import description, model_card
from psclap.model_card.standing import Standing, is_above_chance, uar_error
from psclap.schema import Utterance
from psclap.shards.index import ShardIndex
from psclap.strict import flatten

VARIANT = "intrinsic"
PERFECT, EVEN = [[24, 0], [0, 24]], [[12, 12], [12, 12]]


def demo_mapping(**register: Any) -> dict[str, Any]:
    mapping = demo_without_voices()
    mapping["corpus"]["options"] |= MINI_CORPUS
    mapping["register"] |= register
    return mapping


@pytest.fixture(scope="module")
def model_folder(mini_shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model, saved as training saves one."""
    folder = tmp_path_factory.mktemp("model")
    training = mini(demo_mapping(), mini_shards, VARIANT)
    for part in training.recipe.build_model(ShardIndex(mini_shards), training.seed):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def facts(mini_shards: Path, model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Facts:
    """What the register stage would gather of that model, with its real evaluation."""
    params, index = parse_params(demo_mapping()), ShardIndex(mini_shards)
    test_sets = TestSets(index, params.evaluate)
    model = Embedder(model_folder)
    results = evaluate_to_folder(tmp_path_factory.mktemp("report"), VARIANT, test_sets, model, model)
    return Facts(
        name=f"psclap-{VARIANT}",
        variant=VARIANT,
        params=params,
        config=json.loads((model_folder / "config.json").read_text()),
        progress={"step": 1234, "metrics": {"val/MRR": 0.4321}},
        parameters=count_parameters(model_folder),
        weights_sha256=sha256_file(model_folder / "model.safetensors"),
        run_id="0123456789abcdef",
        metrics=headline(results),
        evaluation=json.loads(json.dumps(results)),
        summary=index.summary,
        trained=split_statistics(index, "train"),
        tested=split_statistics(index, "test"),
        shared_speakers=shared_speakers(index, "test"),
    )


def with_confusion(facts: Facts, attribute: str, confusion: list[list[int]]) -> Facts:
    """The facts of an evaluation in which an attribute of two candidates came out like this."""
    score = sum(row[place] / sum(row) for place, row in enumerate(confusion)) / len(confusion)
    metrics, evaluation = json.loads(json.dumps([facts.metrics, facts.evaluation]))
    metrics["classification"][attribute] |= {"UAR": score, "macro_F1": score}
    evaluation["model"]["classification"][attribute]["confusion"] = confusion
    return replace(facts, metrics=metrics, evaluation=evaluation)


def with_register(facts: Facts, **register: Any) -> Facts:
    return replace(facts, params=parse_params(demo_mapping(**register)))


def tables(text: str) -> list[list[dict[str, str]]]:
    """Every table of a Markdown text as rows of named cells; a name that is there twice has its number behind it."""
    found = []
    for block in re.findall(r"(?:^\|.*\|\n)+", text, re.M):
        header, _, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        names = [f"{name} {header[:place].count(name) + 1}" for place, name in enumerate(header)]
        found.append([dict(zip(names, row, strict=True)) for row in rows])
    return found


def table_of(text: str, *columns: str) -> list[dict[str, str]]:
    (found,) = [rows for rows in tables(text) if {f"{name} 1" for name in columns} <= rows[0].keys()]
    return found


def line_with(text: str, beginning: str) -> str:
    (line,) = [line for line in text.splitlines() if line.startswith(beginning)]
    return line


def test_the_hub_reads_the_metadata(facts: Facts, tmp_path: Path) -> None:
    model_card(facts).save(tmp_path / "README.md")
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.license, data.library_name, data.pipeline_tag) == (
        "mit",
        "transformers",
        "zero-shot-audio-classification",
    )
    assert (data.language, data.model_name, data.base_model) == (["en"], "psclap-intrinsic", None)
    assert {"paraspeechclap", "sentence-transformers"} <= {*data.tags}
    assert "license_name" not in data.to_dict()


def test_the_model_index_holds_every_measured_number(facts: Facts) -> None:
    results = ModelCard(str(model_card(facts))).data.eval_results
    assert all(isinstance(result, EvalResult) and result.dataset_split == "test" for result in results)
    found = {(r.task_type, r.dataset_config, r.metric_name): r.metric_value for r in results}
    expected = {}
    for name in ("intrinsic", "situational", "combined"):
        for direction in ("audio_to_text", "text_to_audio"):
            for key in ("R@1", "R@5", "R@10"):
                task = f"{direction.replace('_', '-')}-retrieval"
                expected[task, name, key] = facts.metrics[name][direction][key]
    for name, scores in facts.metrics["classification"].items():
        expected["zero-shot-audio-classification", name, "UAR (macro recall)"] = scores["UAR"]
        expected["zero-shot-audio-classification", name, "macro F1"] = scores["macro_F1"]
    assert len(results) == len(expected) == 18 + 14
    assert found == expected


def test_every_number_of_the_tables_is_that_of_the_metrics_files(facts: Facts) -> None:
    text = str(model_card(facts))
    retrieval = table_of(text, "direction", "R@1")
    assert [row["captions 1"] for row in retrieval[::2]] == ["intrinsic", "situational", "combined"]
    for row in retrieval:
        direction = {"speech to caption": "audio_to_text", "caption to speech": "text_to_audio"}[row["direction 1"]]
        scores = facts.metrics[row["captions 1"]][direction]
        names = ("R@1 1", "by chance 1", "R@5 1", "R@10 1", "by chance 2")
        shares = ("R@1", "chance_R@1", "R@5", "R@10", "chance_R@10")
        assert [float(row[name]) / 100 for name in names] == pytest.approx([scores[name] for name in shares], abs=1e-9)
        ends = [float(end) / 100 for end in row["95 % 1"].split(" to ")]
        assert ends == pytest.approx([scores["R@1_low"], scores["R@1_high"]], abs=1e-9)
        assert float(row["median rank 1"]) == scores["median_rank"]
        assert float(row["mean rank 1"]) == scores["mean_rank"]
    classified = table_of(text, "attribute", "UAR")
    assert [row["attribute 1"] for row in classified] == list(facts.params.evaluate.attributes)
    for row in classified:
        scores = facts.metrics["classification"][row["attribute 1"]]
        pairs = {
            "UAR 1": "UAR",
            "by chance 1": "chance_UAR",
            "untrained 1": "untrained_UAR",
            "by ensembles 1": "ensemble_UAR",
            "macro F1 1": "macro_F1",
        }
        ends = [float(end) / 100 for end in row["95 % 1"].split(" to ")]
        assert ends == pytest.approx([scores["UAR_low"], scores["UAR_high"]], abs=1e-9)
        for name, key in pairs.items():
            assert float(row[name]) / 100 == pytest.approx(scores[key], abs=1e-9)


def test_it_counts_what_the_shards_and_the_weights_hold(
    facts: Facts, mini_corpus: tuple[Path, list[Utterance]], model_folder: Path
) -> None:
    text = str(model_card(facts))
    model = Embedder(model_folder).model
    assert sum(facts.parameters.values()) == model.num_parameters()
    assert f"{model.audio_model.num_parameters():,} parameters" in text
    for row in table_of(text, "split", "speakers"):
        of_split = [u for u in mini_corpus[1] if u.split == row["split 1"]]
        assert int(row["clips 1"]) == len(of_split)
        assert int(row["speakers 1"]) == len({u.speaker for u in of_split})
    (captions,) = table_of(text, "captions", "number")
    texts = [c.text for u in mini_corpus[1] if u.split == "train" for c in u.captions if c.set == "intrinsic"]
    assert (captions["captions 1"], captions["number 1"]) == ("intrinsic", str(len(texts)))
    assert captions["distinct 1"] == str(len(set(texts)))
    for value in (facts.summary["index_sha256"], facts.weights_sha256, facts.run_id, "step 1,234", "val/MRR of 0.4321"):
        assert value in text


def test_speakers_heard_in_training_are_counted(
    mini_corpus: tuple[Path, list[Utterance]], mini_shards: Path, tmp_path: Path
) -> None:
    assert shared_speakers(ShardIndex(mini_shards), "test") == 0
    speaker = next(u.speaker for u in mini_corpus[1] if u.split == "train")
    few = [u for u in mini_corpus[1] if u.split == "test"][:4] + [u for u in mini_corpus[1] if u.speaker == speaker]
    shard([replace(few[0], speaker=speaker), *few[1:]], tmp_path / "shards", SHARDING)
    index = ShardIndex(tmp_path / "shards")
    assert shared_speakers(index, "test") == 1


def test_attributes_are_sorted_by_how_they_stand_against_chance(facts: Facts) -> None:
    text = str(model_card(with_confusion(with_confusion(facts, "gender", PERFECT), "volume", EVEN)))
    assert "gender (100.00, chance 50.00)" in line_with(text, "- Strong:")
    assert "volume (50.00, chance 50.00)" in line_with(text, "- At or near chance")
    assert "gender" not in line_with(text, "- **Known failures.**")
    assert "volume" in line_with(text, "- **Known failures.**")
    assert "A person is speaking in a male style." in text  # of what it tells best, the example is made


def test_an_untrained_model_is_called_no_better_than_guessing(facts: Facts) -> None:
    text = str(model_card(facts))
    for attribute in facts.params.evaluate.attributes:
        scores = facts.metrics["classification"][attribute]
        if scores["UAR"] <= scores["chance_UAR"]:
            assert attribute in line_with(text, "- **Known failures.**")
    assert "it finds no more than chance would" in text


def test_the_worst_mistake_is_named(facts: Facts) -> None:
    text = str(model_card(with_confusion(facts, "gender", [[23, 1], [6, 18]])))
    assert "female for male (gender, 25.00 % of its clips)" in line_with(text, "- Most often mistaken:")


@pytest.mark.parametrize(
    ("score", "error", "strength"),
    [
        *((0.5, 0.0, "near chance"), (0.54, 0.0, "near chance"), (0.6, 0.06, "near chance"), (0.6, 0.04, "moderate")),
        *((0.87, 0.01, "moderate"), (0.875, 0.01, "strong"), (0.3, 0.01, "near chance"), (1.0, 0.0, "strong")),
    ],
)
def test_what_is_strong_and_what_is_chance(score: float, error: float, strength: str) -> None:
    assert Standing("gender", score, 0.5, error).strength == strength


def test_errors_shrink_with_the_number_of_clips() -> None:
    assert uar_error([[5, 5], [5, 5]]) == pytest.approx((0.25 / 10 + 0.25 / 10) ** 0.5 / 2)
    assert uar_error([[500, 500], [500, 500]]) == pytest.approx(uar_error([[5, 5], [5, 5]]) / 10)
    assert is_above_chance(0.06, 0.04, 10_000)
    assert not is_above_chance(0.06, 0.04, 100)
    assert not is_above_chance(0.0, 0.0, 100)


def test_a_model_without_classification_on_an_untagged_corpus(
    facts: Facts, mini_corpus: tuple[Path, list[Utterance]], tmp_path: Path
) -> None:
    untagged = [replace(u, intrinsic_tags=(), situational_tags=(), language="") for u in mini_corpus[1]]
    shard(untagged, tmp_path / "shards", SHARDING)
    index = ShardIndex(tmp_path / "shards")
    bare = replace(
        facts,
        metrics={name: numbers for name, numbers in facts.metrics.items() if name != "classification"},
        evaluation={kind: {**part, "classification": {}} for kind, part in facts.evaluation.items()},
        trained=split_statistics(index, "train"),
        tested=split_statistics(index, "test"),
    )
    card = ModelCard(str(model_card(bare)))
    assert "Not measured: the test clips carry no tags" in card.text
    assert "carry no tags, so which styles" in card.text
    assert "Tags, " not in card.text
    assert "(not given) (96 clips)" in card.text
    assert {result.task_type for result in card.data.eval_results} == {
        "audio-to-text-retrieval",
        "text-to-audio-retrieval",
    }
    assert card.data.metrics == ["recall"]
    assert card.data.language is None
    assert "tells" not in description(bare)


@pytest.mark.parametrize(
    ("register", "metadata", "said"),
    [
        ({"license": "Apache-2.0"}, {"license": "apache-2.0"}, "The weights: `apache-2.0`."),
        ({"license": "other"}, {"license": "other"}, "No licence has been chosen"),
        (
            {"license": "other", "license_name": "house", "license_link": "https://example.org/house"},
            {"license": "other", "license_name": "house", "license_link": "https://example.org/house"},
            "The weights: [house](https://example.org/house).",
        ),
    ],
)
def test_the_licence_is_that_of_the_params(
    facts: Facts, register: dict[str, str], metadata: dict[str, str], said: str
) -> None:
    card = ModelCard(str(model_card(with_register(facts, **register))))
    assert {name: value for name, value in card.data.to_dict().items() if name.startswith("license")} == metadata
    assert said in card.text


@pytest.mark.parametrize("licence", ["mti", "", "gpl-4.0", "MIT License", "mit "])
def test_a_licence_that_the_hub_would_refuse_is_refused_at_the_door(licence: str) -> None:
    with pytest.raises(ConfigError, match=r"register\.license: .* must be a licence of the Hugging Face Hub"):
        parse_params(demo_mapping(license=licence))


def test_only_another_licence_has_a_name() -> None:
    with pytest.raises(ConfigError, match=r"license 'mit' .* set license_link to null, or license to other"):
        parse_params(demo_mapping(license_link="https://example.org"))


def test_encoders_from_the_hub_are_base_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    params: Params = parse_params(yaml.safe_load((PRESETS_FOLDER / "paper.yaml").read_text()))
    assert base_models(params.model) == [params.model.speech.pretrained, params.model.text.pretrained]
    Path("microsoft/wavlm-large").mkdir(parents=True)  # as transformers, it takes the folder that is there
    assert base_models(params.model) == [params.model.text.pretrained]


def test_a_folder_that_an_encoder_was_started_from_is_not_told(facts: Facts) -> None:
    model = facts.params.model
    speech = replace(model.speech, pretrained="/home/somebody/encoders/wavlm-large", config=None)
    moved = replace(facts, params=replace(facts.params, model=replace(model, speech=speech)))
    assert "started from wavlm-large:" in str(model_card(moved))
    assert "somebody" not in str(model_card(moved))


def with_corpus(name: str, options: dict[str, Any]) -> dict[str, Any]:
    """The demo's parameters for another corpus."""
    mapping = demo_mapping()
    return mapping | {"corpus": {"name": name, "options": options}, "reward": mapping["reward"] | {"variants": []}}


def test_several_corpora_are_named_one_by_one() -> None:
    members = [{"name": name, "prefix": prefix} for name, prefix in [("demo", "a"), ("manifest", "b"), ("demo", "c")]]
    assert corpus_names(parse_params(with_corpus("several", {"corpora": members})).corpus) == ("demo", "manifest")


def test_only_the_demo_is_called_synthetic(facts: Facts) -> None:
    params = parse_params(with_corpus("manifest", {}))
    demo, other = str(model_card(facts)), str(model_card(replace(facts, params=params)))
    assert "espeak-ng" in demo
    assert "Labelling or filtering corpora" not in demo
    assert "espeak-ng" not in other
    assert "Labelling or filtering corpora" in other


def test_its_lines_of_use_run_as_they_are_written(
    facts: Facts, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three ways give the same cosines, those of the Embedder."""
    monkeypatch.chdir(tmp_path)
    wave = (0.1 * np.random.default_rng(0).standard_normal(24000)).astype(np.float32)
    soundfile.write("speech.wav", wave, 16000, subtype="FLOAT")
    blocks = re.findall(r"```python\n(.*?)```", str(model_card(facts)), re.S)
    assert len(blocks) == 3
    code = "".join(blocks).replace("path/to/this/folder", str(model_folder))
    names: dict[str, Any] = {"print": lambda matrix: shown.append(np.asarray(matrix))}
    shown: list[np.ndarray] = []
    exec(code, names)
    embedder = Embedder(model_folder)
    expected = embedder.embed_audio([wave]) @ embedder.embed_text(names["captions"]).T
    assert len(shown) == 3
    for cosines in shown:
        np.testing.assert_allclose(cosines, expected, atol=1e-5)


def test_a_registered_version_carries_its_card(
    facts: Facts, model_folder: Path, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same card again adds no version; another one does, since a version's files never change."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server)
    store = TrackingStore.at(tmp_path)
    run_id = store.client().create_run("0").info.run_id
    tags = {"metric": f"{flatten(facts.metrics, '/')['combined/audio_to_text/R@1']:.4f}"}

    def registered(card: Card) -> str:
        return register(store, run_id, model_folder, "carded", "champion", tags, card).uri

    card = Card(str(model_card(facts)), description(facts))
    changed = Card(str(model_card(with_register(facts, license="cc-by-4.0"))), "changed")
    assert [registered(card), registered(card), registered(changed)] == [f"models:/carded/{n}" for n in (1, 1, 2)]
    assert (fetch_model("models:/carded/1") / "README.md").read_text() == card.readme
    assert ModelCard.load(fetch_model("models:/carded@champion") / "README.md").data.license == "cc-by-4.0"
    assert MlflowClient(server).get_model_version("carded", "1").description == description(facts)
    assert not (model_folder / "README.md").exists()
