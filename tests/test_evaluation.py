"""Test sets from real shards, what embeddings score on them, and the composition of attributes."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from conftest import SHARDING, shard

from psclap.config import EvaluateConfig
from psclap.errors import PsclapError
from psclap.evaluation.classification import carried_attributes
from psclap.evaluation.clips import Clips
from psclap.evaluation.composition import MAX_CLIPS, composition_sets
from psclap.evaluation.evaluate import Embedded, TestSets
from psclap.evaluation.queries import from_table
from psclap.evaluation.results import Evaluation
from psclap.evaluation.retrieval import RetrievalSet, carried_caption_sets
from psclap.schema import CAPTION_SETS, Caption, Utterance
from psclap.shards.index import ShardIndex

ATTRIBUTES = ("gender", "pitch-level", "texture", "rate")


@pytest.fixture(scope="module")
def test_sets(mini_shards: Path) -> TestSets:
    return TestSets(ShardIndex(mini_shards), EvaluateConfig("test", CAPTION_SETS, ATTRIBUTES))


def made_up(test_sets: TestSets, know: float, seed: int = 0, dim: int = 256) -> Embedded:
    """What a model embeds that hears `know` of each clip's tags, and nothing else; 0 is noise, NaN a constant."""
    rng = np.random.default_rng(seed)
    known = {tag for tags in test_sets.clips.tags for tag in tags}
    words = dict(zip(sorted(known), unit(rng.standard_normal((len(known), dim))), strict=True))

    def of_tags(tags) -> np.ndarray:
        return np.sum([words[tag] for tag in sorted(tags)], axis=0)

    def of_text(text: str) -> np.ndarray:
        return of_tags(tag for tag in known if tag in text.replace(",", " ").split())

    speech = [know * of_tags(tags) + (1 - know) * rng.standard_normal(dim) for tags in test_sets.clips.tags]
    texts = {}
    for name, test_set in test_sets.retrieval.items():
        tags_of = dict(zip(test_sets.rows.tolist(), test_sets.clips.tags, strict=True))
        owners = [
            tags_of[int(test_set.rows[clips[0]])]
            for clips in map(test_set.right.transposed.of_query, range(len(test_set.captions)))
        ]
        texts[name] = unit([of_tags(tags) for tags in owners])
    tags = {s.attribute: unit([words[tag] for tag in s.candidates]) for s in test_sets.classification}
    prompts = {p: of_text(p) for sets in test_sets.composition.values() for s in sets for p in s.captions}
    return Embedded(unit(speech), texts, tags, tags, {prompt: unit([vector])[0] for prompt, vector in prompts.items()})


def unit(vectors) -> np.ndarray:
    rows = np.asarray(vectors, np.float32)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def constant(test_sets: TestSets) -> Embedded:
    """What a model embeds that is deaf."""
    other = made_up(test_sets, 1.0)

    def same(vectors: np.ndarray) -> np.ndarray:
        return np.repeat(vectors[:1], len(vectors), 0)

    vector = other.speech[0]
    return Embedded(
        same(other.speech),
        {name: same(vectors) for name, vectors in other.texts.items()},
        {name: same(vectors) for name, vectors in other.tags.items()},
        {name: same(vectors) for name, vectors in other.ensembles.items()},
        dict.fromkeys(other.prompts, vector),
    )


def test_a_model_that_hears_the_tags_finds_them_all(test_sets: TestSets) -> None:
    results = test_sets.score(made_up(test_sets, 1.0)).results
    for direction in ("audio_to_text", "text_to_audio"):
        assert results["retrieval"]["combined"][direction]["R@1"] == 1
        assert {of_k[direction]["R@1"] for of_k in results["composition"].values()} == {1.0}
    for scores in results["classification"].values():
        assert scores["UAR"] == scores["macro_F1"] == scores["ensemble"]["UAR"] == 1
        assert {tag["recall"] for tag in scores["tags"].values()} == {1.0}
        assert sum(tag["clips"] for tag in scores["tags"].values()) == 48


def test_a_constant_model_scores_chance_everywhere(test_sets: TestSets) -> None:
    results, chance = test_sets.score(constant(test_sets)).results, test_sets.chance()
    for direction in ("audio_to_text", "text_to_audio"):
        for name in CAPTION_SETS:
            for metric, value in chance["retrieval"][name][direction].items():
                assert results["retrieval"][name][direction][metric] == pytest.approx(value)
        for k, guessed in chance["composition"].items():
            assert results["composition"][k][direction]["R@1"] == pytest.approx(guessed[direction]["R@1"])
    for name, guessed in chance["classification"].items():
        assert results["classification"][name]["UAR"] == pytest.approx(guessed["UAR"])


def test_embeddings_that_are_not_finite_are_refused(test_sets: TestSets) -> None:
    broken = made_up(test_sets, 1.0)
    broken.speech[3, 5] = np.nan
    with pytest.raises(PsclapError, match="not finite"):
        test_sets.score(broken)


def evaluated(test_sets: TestSets) -> Evaluation:
    return test_sets.score(made_up(test_sets, 0.3))


def test_every_query_is_a_row_from_which_the_metrics_follow(test_sets: TestSets, tmp_path: Path) -> None:
    evaluation = evaluated(test_sets)
    pq.write_table(evaluation.queries, tmp_path / "queries.parquet")
    table = pq.read_table(tmp_path / "queries.parquet").to_pandas()
    results = evaluation.results
    for name in CAPTION_SETS:
        for direction, scores in results["retrieval"][name].items():
            rows = table[(table.kind == "retrieval") & (table.set == name) & (table.direction == direction)]
            assert len(rows) == scores["queries"]
            assert rows.hit_at_5.mean() == pytest.approx(scores["R@5"])
            assert rows.expected_rank.median() == scores["median_rank"]
            assert {*rows.unit} <= {f"demo/test-{number:02d}" for number in range(24)} | {*rows["query"]}
    rows = table[(table.kind == "classification") & (table.set == "texture")]
    recalls = (rows.actual == rows.predicted).groupby(rows.actual).mean()
    assert recalls.mean() == pytest.approx(results["classification"]["texture"]["UAR"])
    assert recalls.to_dict() == pytest.approx(
        {tag: of_tag["recall"] for tag, of_tag in results["classification"]["texture"]["tags"].items()}
    )
    asked = table[(table.kind == "composition") & (table.set == "2") & (table.direction == "audio_to_text")]
    assert asked.hit_at_1.mean() == pytest.approx(results["composition"]["2"]["audio_to_text"]["R@1"])


def test_query_sets_come_back_from_the_table(test_sets: TestSets) -> None:
    evaluation = evaluated(test_sets)
    back = [*from_table(evaluation.queries)]
    assert [of_set.place for of_set in back] == [of_set.place for of_set in evaluation.query_sets]
    for read, made in zip(back, evaluation.query_sets, strict=True):
        assert (list(read.queries), list(read.units)) == (list(made.queries), list(made.units))


def test_intervals_hold_the_metric_and_are_the_same_again(test_sets: TestSets) -> None:
    evaluation = evaluated(test_sets)
    results = evaluation.with_intervals(200, seed=1)
    assert results == evaluation.with_intervals(200, seed=1)
    assert "intervals" not in evaluation.results["retrieval"]["combined"]["audio_to_text"]
    groups = [results["retrieval"][name][d] for name in CAPTION_SETS for d in ("audio_to_text", "text_to_audio")]
    groups += [scores for of in results["classification"].values() for scores in (of, of["ensemble"])]
    groups += [of_k[d] for of_k in results["composition"].values() for d in ("audio_to_text", "text_to_audio")]
    for group in groups:
        for name, (low, high) in group["intervals"].items():
            assert low <= group[name] <= high


def test_a_clip_of_several_captions_and_a_caption_of_several_clips(
    mini_corpus: tuple[Path, list[Utterance]], tmp_path: Path
) -> None:
    clips = [u for u in mini_corpus[1] if u.split == "test"][:3]
    texts = [["a", "b", "a"], ["b"], ["c"]]  # the first clip says a twice
    utterances = [
        replace(clip, captions=tuple(Caption("combined", text) for text in of_clip))
        for clip, of_clip in zip(clips, texts, strict=True)
    ]
    shard(utterances, tmp_path / "shards", SHARDING)
    index = ShardIndex(tmp_path / "shards")
    assert carried_caption_sets(index, "test") == ("combined",)
    assert carried_caption_sets(index, "val") == ()
    test_set = RetrievalSet.of(index, "test", "combined")
    texts_of = dict(zip([u.key for u in utterances], map(set, texts), strict=True))
    keys = index.take(test_set.rows, ["key"])["key"].to_pylist()
    assert test_set.captions == ["a", "b", "c"]
    for number, key in enumerate(keys):
        assert {test_set.captions[caption] for caption in test_set.right.of_query(number)} == texts_of[key]
    assert test_set.right.transposed.counts.tolist() == [1, 2, 1]
    assert test_set.chance()["audio_to_text"]["R@1"] == pytest.approx((2 + 1 + 1) / 9)


def test_units_are_speakers_where_there_are_enough(test_sets: TestSets, mini_shards: Path) -> None:
    index = ShardIndex(mini_shards)
    assert (test_sets.clips.unit, len({*test_sets.clips.unit_names})) == ("speaker", 24)
    assert Clips.of(index, test_sets.rows[:8]).unit == "clip"
    assert Clips.of(index, test_sets.rows, "clip").unit_names == test_sets.clips.keys
    with pytest.raises(PsclapError, match="all clips are of one speaker"):
        Clips.of(index, test_sets.rows[:1], "speaker")


def test_a_fingerprint_is_of_the_content(test_sets: TestSets, mini_shards: Path) -> None:
    again = TestSets(ShardIndex(mini_shards), EvaluateConfig("test", ("combined",), ("gender",)))
    prints = test_sets.fingerprints()
    assert {*again.fingerprints().items()} & {*prints.items()} == {
        (name, prints[name]) for name in ("retrieval/combined", "classification/gender")
    }
    other = TestSets(ShardIndex(mini_shards), EvaluateConfig("val", ("combined",), ("gender",))).fingerprints()
    assert not {*prints.values()} & {*other.values()}
    assert len({*prints.values()}) == len(prints)


def test_a_split_with_nothing_to_score_is_refused(mini_shards: Path) -> None:
    with pytest.raises(PsclapError, match="nothing to score: the test clips"):
        TestSets(ShardIndex(mini_shards), EvaluateConfig("test", (), ()))


TAGS = [
    {"male", "slow", "loud"},
    {"male", "fast", "loud"},
    {"female", "slow", "soft"},
    {"female", "loud"},
    {"loud", "soft"},
]


def test_combinations_are_all_that_the_tags_could_make() -> None:
    sets = composition_sets(np.arange(10, 15), TAGS, ["gender", "rate", "volume"])
    assert {k: len(of_k) for k, of_k in sets.items()} == {1: 3, 2: 3, 3: 1}
    (whole,) = sets[3]
    assert whole.rows.tolist() == [10, 11, 12]  # the fourth has no rate; the fifth is loud and soft
    assert whole.combinations == [
        f"{gender}, {rate}, {volume}"
        for gender in ("male", "female")
        for rate in ("slow", "fast")
        for volume in ("loud", "soft")
    ]
    assert whole.captions[0] == "A person is speaking in a male, slow, loud style."
    of_clips = [whole.combinations[number] for number in whole.right.numbers]
    assert of_clips == ["male, slow, loud", "male, fast, loud", "female, slow, soft"]
    assert [whole.combinations[number] for number in whole.asked] == of_clips
    right = whole.by_direction()
    assert (right["audio_to_text"].num_candidates, len(right["text_to_audio"])) == (8, 3)
    assert [right["text_to_audio"].of_query(number).tolist() for number in range(3)] == [[0], [1], [2]]
    assert whole.chance()["audio_to_text"]["R@1"] == pytest.approx(1 / 8)


def test_attributes_that_share_a_tag_or_have_one_only_are_left_out() -> None:
    sets = composition_sets(np.arange(5), TAGS, ["volume", "situational", "rhythm", "gender"])
    assert [of_set.attributes for of_set in sets[1]] == [("volume",), ("gender",)]
    assert composition_sets(np.arange(2), [{"male"}, {"male"}], ["gender"]) == {}


def test_sets_are_drawn_by_the_seed_and_bounded() -> None:
    rng = np.random.default_rng(0)
    names = {
        "gender": ("male", "female"),
        "rate": ("slow", "fast"),
        "texture": ("husky", "raspy"),
        "pitch": ("deep", "nasal"),
    }
    tags = [{str(rng.choice(of)) for of in names.values()} for _ in range(MAX_CLIPS + 500)]
    one, same, other = (composition_sets(np.arange(len(tags)), tags, [*names], seed) for seed in (0, 0, 1))
    assert [s.attributes for s in one[2]] == [s.attributes for s in same[2]]
    assert len(one[2]) == 5  # of 6
    for drawn, again in zip(one[4], same[4], strict=True):
        assert len(drawn.rows) == MAX_CLIPS
        assert (np.diff(drawn.rows) > 0).all()
        assert drawn.rows.tolist() == again.rows.tolist()
    assert one[4][0].rows.tolist() != other[4][0].rows.tolist()


def test_what_is_told_independently_is_the_product_of_what_is_told_alone(test_sets: TestSets) -> None:
    results = evaluated(test_sets).results["composition"]
    alone = dict(
        zip(
            [s.attributes[0] for s in test_sets.composition[1]],
            evaluated(test_sets)._outcomes.composition[1],
            strict=True,
        )
    )
    recalls = {name: outcome["audio_to_text"].hits[:, 0].mean() for name, outcome in alone.items()}
    assert results["4"]["audio_to_text"]["independent_R@1"] == pytest.approx(np.prod([*recalls.values()]))
    assert results["1"]["audio_to_text"]["independent_R@1"] == pytest.approx(results["1"]["audio_to_text"]["R@1"])


def test_attributes_of_a_split(mini_shards: Path) -> None:
    assert {"gender", "pitch-level", "texture", "rate"} <= {*carried_attributes(ShardIndex(mini_shards), "test")}
