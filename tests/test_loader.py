import hashlib
import itertools
import shutil
import threading

import numpy as np
import pytest

from psclap.errors import PsclapError
from psclap.loader import Loader, Position
from psclap.sampling import class_balance
from psclap.shards.index import ShardIndex


class Recorder:
    """A task whose examples say what they were made of."""

    def example(self, row, clip, rng):
        digest = hashlib.sha256(clip.tobytes()).hexdigest()
        return row["key"], str(rng.choice(row["captions"])), digest, int(rng.integers(2**62))

    def collate(self, examples, rng):
        return tuple(examples), int(rng.integers(2**62))


class Clips:
    """A task whose batches are the clips themselves."""

    def example(self, row, clip, rng):
        return row["key"], clip

    def collate(self, examples, rng):
        return list(examples)


@pytest.fixture(scope="module")
def index(mini_shards):
    return ShardIndex(mini_shards)


def loader(index, task, sets=("intrinsic",), **changes):
    views = [index.view("train", caption_set) for caption_set in sets]
    options = {"global_batch_size": 16, "max_crop_s": 0.5, "seed": 3}
    return Loader(index, views, task, **{**options, **changes})


def take(batches, count):
    iterator = iter(batches)
    taken = list(itertools.islice(iterator, count))
    iterator.close()
    return taken


def kind(index, name):
    """The arguments of a loader of this kind."""
    if name == "balanced":
        tags = [index.row(int(row))["intrinsic_tags"] for row in index.view("train", "intrinsic").rows]
        return {"balance": class_balance(tags, 0.05, 2, 8)}
    return {"sets": ("intrinsic", "situational") if name == "interleaved" else ("combined",)}


@pytest.mark.parametrize("name", ["single", "interleaved", "balanced"])
def test_batches_follow_the_plan(index, name):
    options = kind(index, name)
    batches = loader(index, Recorder(), **options)
    sets = options.get("sets", ("intrinsic",))
    pairs = [(int(row), caption_set) for caption_set in sets for row in index.view("train", caption_set).rows]
    wanted = [[pairs[number] for number in batches.plan(0).examples(step)] for step in range(len(batches.plan(0)))]
    for pairs_of_batch, (_, (examples, _)) in zip(wanted, take(batches, len(wanted)), strict=True):
        for (row_number, caption_set), (key, caption, _, _) in zip(pairs_of_batch, examples, strict=True):
            row = index.row(row_number)
            assert key == row["key"]
            assert {"set": caption_set, "text": caption} in row["captions"]


@pytest.mark.parametrize("name", ["single", "interleaved", "balanced"])
def test_resuming_at_any_position_gives_exactly_the_batches_that_follow(index, name):
    options = kind(index, name)
    steps = len(loader(index, Recorder(), **options).plan(0))
    whole = take(loader(index, Recorder(), **options), steps + 3)
    positions = [Position(), *(position for position, _ in whole)]
    assert positions[: steps + 2] == [*(Position(0, step) for step in range(steps)), Position(1, 0), Position(1, 1)]
    for done, position in enumerate(positions[: steps + 2]):
        rest = take(loader(index, Recorder(), **options, position=position), 2)
        assert rest == whole[done : done + 2]


def test_epochs_draw_anew(index):
    batches = take(loader(index, Recorder()), 12)
    first, second = (
        {example[0]: example for _, (batch, _) in half for example in batch} for half in (batches[:6], batches[6:])
    )
    assert sorted(first) == sorted(second)
    assert [key for key in first if first[key][2] == second[key][2]] == []
    assert len({draw for _, (_, draw) in batches}) == 12


@pytest.mark.parametrize("prefetch", [0, 1, 5])
def test_loading_ahead_changes_nothing(index, prefetch):
    assert take(loader(index, Recorder(), prefetch=prefetch), 4) == take(loader(index, Recorder()), 4)


def test_a_crop_is_a_slice_of_its_clip_at_every_kind_of_place(index):
    number_of = {key: number for number, key in enumerate(index.table["key"].to_pylist())}
    places = []
    for _, batch in take(loader(index, Clips()), 6):
        for key, clip in batch:
            whole = index.read_clip(number_of[key])
            place, remainder = divmod(whole.tobytes().find(clip.tobytes()), 4)
            assert (len(clip), clip.dtype, remainder) == (8000, np.float32, 0)
            assert 0 <= place <= len(whole) - 8000
            places.append(place / (len(whole) - 8000))
    assert np.histogram(places, bins=4, range=(0, 1))[0].min() >= 10  # of 96


def test_a_clip_shorter_than_the_crop_comes_whole(index):
    number_of = {key: number for number, key in enumerate(index.table["key"].to_pylist())}
    for _, batch in take(loader(index, Clips(), max_crop_s=60.0), 2):
        for key, clip in batch:
            np.testing.assert_array_equal(clip, index.read_clip(number_of[key]))


def test_an_error_in_the_loading_thread_arrives_where_the_batches_are_taken(index, tmp_path):
    damaged = shutil.copytree(index.folder, tmp_path / "damaged")
    (damaged / "train-00001.tar").unlink()
    with pytest.raises(PsclapError, match=r"cannot read shard .*train-00001\.tar"):
        take(loader(ShardIndex(damaged), Recorder()), 6)


def test_closing_the_batches_ends_their_thread(index):
    before = threading.active_count()
    batches = iter(loader(index, Recorder()))
    next(batches)
    assert threading.active_count() == before + 1
    batches.close()
    assert threading.active_count() == before
