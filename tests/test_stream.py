"""What a training reads of an index, by the options of its sampling."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import SHARDING, shard

from psclap.config import PRESETS_FOLDER, load_params
from psclap.errors import PsclapError
from psclap.loader import Stream
from psclap.loop_config import SamplingConfig
from psclap.sampling import EpochPlan, Examples
from psclap.shards.index import ShardIndex
from psclap.training.data import build_stream, carried_tags
from psclap.training.plans import check_plans, total_steps

TRAIN = replace(load_params(PRESETS_FOLDER / "demo.yaml").train["combined"], global_batch_size=8)


@pytest.fixture(scope="module")
def index(mini_corpus, tmp_path_factory):
    """Every third clip is of another corpus."""
    folder = tmp_path_factory.mktemp("two-corpora")
    utterances = [replace(u, source="other") if number % 3 == 0 else u for number, u in enumerate(mini_corpus[1])]
    shard(utterances, folder, SHARDING)
    return ShardIndex(folder)


def stream(index, sets=("combined",), epochs=None, **sampling):
    options = {"max_steps": None, "max_epochs": epochs} if epochs else {}
    config = replace(TRAIN, caption_sets=sets, sampling=SamplingConfig(**sampling), **options)
    return build_stream(config, index, seed=1), config


def test_sources_are_the_caption_sets_within_each_corpus(index):
    mixed, _ = stream(index, ("intrinsic", "situational"), mixing_corpora=("demo", "other"))
    assert mixed.examples.source_sizes == [64, 32, 64, 32]
    assert [view.caption_set for view in mixed.views] == ["intrinsic"] * 2 + ["situational"] * 2
    for view, source in zip(mixed.views, ("demo", "other") * 2, strict=True):
        assert {row["source"] for row in index.take(view.rows, ["source"]).to_pylist()} == {source}
    whole, _ = stream(index, ("intrinsic",))
    assert sorted(np.concatenate([view.rows for view in mixed.views[:2]])) == whole.views[0].rows.tolist()


def test_a_corpus_without_clips_is_named(index):
    with pytest.raises(PsclapError, match=r"no train clip of the corpus 'absent' with a caption of the set 'combined'"):
        stream(index, mixing_corpora=("demo", "absent"))


def test_only_the_columns_that_the_options_use_are_read(index):
    plain, _ = stream(index)
    assert (plain.examples.shard, plain.examples.num_samples, plain.examples.caption_group) == (None, None, None)
    assert plain.examples.balance is None
    blocks, _ = stream(index, shuffle_block_shards=1)
    names = [index.shard_names[number] for number in blocks.examples.shard]
    assert names == [row["shard"] for row in index.take(blocks.views[0].rows, ["shard"]).to_pylist()]
    buckets, config = stream(index, bucket_batches=2)
    longest = round(config.max_crop_s * 16000)
    assert (
        buckets.examples.num_samples.tolist() == np.minimum(index.num_samples[buckets.views[0].rows], longest).tolist()
    )


def test_no_two_clips_of_a_batch_can_be_given_one_caption(index):
    distinct, _ = stream(index, ("combined",), distinct_captions=True)
    captions = index.captions(distinct.views[0]).to_pylist()
    for epoch in range(3):
        plan = distinct.plan(epoch)
        for step in range(len(plan)):
            texts = [text for number in plan.examples(step) for text in set(captions[number])]
            assert len(set(texts)) == len(texts)


def test_captions_that_cannot_be_kept_apart_are_refused_with_the_way_out(mini_corpus, tmp_path):
    same = tuple(replace(caption, text="A voice.") for caption in mini_corpus[1][0].captions)
    (tmp_path / "shards").mkdir()
    shard([replace(utterance, captions=same) for utterance in mini_corpus[1]], tmp_path / "shards", SHARDING)
    with pytest.raises(
        PsclapError, match=r"96 examples share a caption, and an epoch has 12 batches of 8: two of them"
    ):
        stream(ShardIndex(tmp_path / "shards"), distinct_captions=True)[0].plan(0)


def test_captions_that_meet_only_in_a_later_epoch_are_refused_at_the_start(index):
    """103 clips, of which ten share a caption, in ten batches of ten: the remainders add up to an eleventh."""
    config = replace(
        TRAIN, global_batch_size=10, max_steps=200, max_epochs=None, sampling=SamplingConfig(distinct_captions=True)
    )
    group = np.arange(103)
    group[:10] = 0
    examples = Examples([103], caption_group=group)
    later = Stream(index, [], examples, 10, 7, config.sampling)
    EpochPlan(examples, 10, 7, 0, config.sampling)
    with pytest.raises(PsclapError, match="11 examples share a caption, and an epoch has 10 batches"):
        check_plans(config, later)


def test_the_balance_is_of_the_intrinsic_tags(index):
    balanced, _ = stream(index, ("intrinsic",), class_balance="sqrt")
    rows = index.take(balanced.views[0].rows, ["intrinsic_tags"]).to_pylist()
    counts: dict[str, int] = {}
    for row in rows:
        for tag in row["intrinsic_tags"]:
            counts[tag] = counts.get(tag, 0) + 1
    wanted = [np.mean([counts[tag] ** -0.5 for tag in row["intrinsic_tags"]]) for row in rows]
    np.testing.assert_allclose(balanced.examples.balance.weights, wanted)
    assert set(carried_tags(index, balanced)) == set(counts)


@pytest.mark.parametrize("sampling", [{}, {"mixing": "concatenate"}, {"mixing_stop": "first"}])
def test_steps_of_epochs_are_those_of_their_plans(index, sampling):
    sets = ("intrinsic", "situational")
    several, config = stream(index, sets, epochs=3, **sampling)
    assert total_steps(config, several) == sum(len(several.plan(epoch)) for epoch in range(3))
    steps = replace(config, max_steps=7, max_epochs=None)
    assert total_steps(steps, several) == 7
