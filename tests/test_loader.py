import hashlib
import itertools
import json
import os
import shutil
import threading
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_sampling import CONCATENATED, PLAIN

from psclap import distributed, loader
from psclap.config import PRESETS_FOLDER as PRESETS
from psclap.config import TrainConfig, load_params
from psclap.errors import PsclapError
from psclap.loader import Loader, Position
from psclap.loop_config import LoadingConfig
from psclap.shards.cache import FileCache
from psclap.shards.index import ShardIndex
from psclap.training.data import build_stream

THREAD = LoadingConfig()
TRAIN: TrainConfig = load_params(PRESETS / "demo.yaml").train["combined"]
SAMPLING = {
    "plain": (("combined",), PLAIN),
    "interleaved": (("intrinsic", "situational"), PLAIN),
    "first": (("intrinsic", "situational"), replace(PLAIN, mixing_stop="first", mixing_probabilities=(0.3, 0.7))),
    "concatenated": (("intrinsic", "situational"), CONCATENATED),
    "balanced": (("intrinsic",), replace(PLAIN, class_balance="inverse")),
    "blocks": (("combined",), replace(PLAIN, shuffle_block_shards=1)),
    "buckets": (("combined",), replace(PLAIN, bucket_batches=2)),
}


class Recorder:
    """A collator whose examples say what they were made of."""

    def example(self, row, clip, rng):
        digest = hashlib.sha256(clip.tobytes()).hexdigest()
        return row["key"], str(rng.choice(row["captions"])), digest, int(rng.integers(2**62))

    def collate(self, examples, rng):
        return tuple(examples), int(rng.integers(2**62))


class Clips:
    """A collator whose batches are the clips themselves."""

    def example(self, row, clip, rng):
        return row["key"], clip

    def collate(self, examples, rng):
        return list(examples)


class ProcessIds:
    """A collator that says where it runs."""

    def example(self, row, clip, rng):
        return torch.from_numpy(clip[:100])

    def collate(self, examples, rng):
        return os.getpid(), torch.stack(examples)


@pytest.fixture(scope="module")
def index(mini_shards):
    return ShardIndex(mini_shards)


@cache
def stream(index, kind="plain", batch_size=16):
    sets, sampling = SAMPLING[kind]
    config = replace(TRAIN, caption_sets=sets, sampling=sampling, global_batch_size=batch_size, max_crop_s=0.5)
    return build_stream(config, index, seed=3)


def load(index, collator, kind="plain", batch_size=16, **changes):
    options = {"max_crop_s": 0.5, "loading": THREAD, **changes}
    return Loader(stream(index, kind, batch_size), collator, **options)


def take(batches, count):
    iterator = iter(batches)
    taken = list(itertools.islice(iterator, count))
    iterator.close()
    return taken


@pytest.mark.parametrize("kind", SAMPLING)
def test_batches_follow_the_plan(index, kind):
    sets = SAMPLING[kind][0]
    plan = stream(index, kind).plan(0)
    pairs = [(int(row), caption_set) for caption_set in sets for row in index.view("train", caption_set).rows]
    wanted = [[pairs[number] for number in plan.examples(step)] for step in range(len(plan))]
    for pairs_of_batch, (_, (examples, _)) in zip(
        wanted, take(load(index, Recorder(), kind), len(wanted)), strict=True
    ):
        for (row_number, caption_set), (key, caption, _, _) in zip(pairs_of_batch, examples, strict=True):
            row = index.row(row_number)
            assert key == row["key"]
            assert {"set": caption_set, "text": caption} in row["captions"]


@pytest.mark.parametrize("kind", SAMPLING)
def test_resuming_at_any_position_gives_exactly_the_batches_that_follow(index, kind):
    steps = len(stream(index, kind).plan(0))
    whole = take(load(index, Recorder(), kind), steps + 3)
    positions = [Position(), *(position for position, _ in whole)]
    assert positions[: steps + 2] == [*(Position(0, step) for step in range(steps)), Position(1, 0), Position(1, 1)]
    for done, position in enumerate(positions[: steps + 2]):
        rest = take(load(index, Recorder(), kind, position=position), 2)
        assert rest == whole[done : done + 2]


@pytest.mark.parametrize("kind", SAMPLING)
@pytest.mark.parametrize("ranks", [2, 3, 4, 8])
def test_the_ranks_shares_make_up_the_batches_of_one_rank(index, monkeypatch, kind, ranks):
    """The clips, crops, captions and draws of a global batch are the same, and every rank has as many."""
    whole = take(load(index, Recorder(), kind, batch_size=24), 5)
    monkeypatch.setattr(distributed, "world_size", lambda: ranks)
    shares = []
    for rank in range(ranks):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(take(load(index, Recorder(), kind, batch_size=24), 5))
    for step, (position, (examples, drawn)) in enumerate(whole):
        of_step = [share[step] for share in shares]
        assert {position for position, _ in of_step} == {position}
        assert {drawn for _, (_, drawn) in of_step} == {drawn}
        assert {len(part) for _, (part, _) in of_step} == {24 // ranks}
        assert tuple(example for _, (part, _) in of_step for example in part) == examples


@pytest.mark.parametrize("start_method", ["fork", "forkserver"])
@pytest.mark.parametrize("processes", [1, 2])
def test_loader_processes_change_nothing_also_when_resuming(index, processes, start_method):
    wanted = take(load(index, Recorder(), "interleaved"), 12)
    loading = LoadingConfig(processes, start_method)
    assert take(load(index, Recorder(), "interleaved", loading=loading), 12) == wanted
    position = wanted[3][0]
    assert take(load(index, Recorder(), "interleaved", loading=loading, position=position), 3) == wanted[4:7]


@given(seed=st.integers(0, 2**32 - 1), step=st.integers(0, 11), kind=st.sampled_from(sorted(SAMPLING)))
def test_any_seed_resumes_at_any_step(index, seed, step, kind):
    of_seed = replace(stream(index, kind), seed=seed)
    whole = take(Loader(of_seed, Recorder(), max_crop_s=0.1, loading=THREAD), step + 2)
    position = whole[step][0]
    assert take(Loader(of_seed, Recorder(), max_crop_s=0.1, loading=THREAD, position=position), 1) == whole[step + 1 :]


def test_batches_are_made_in_as_many_processes_as_asked_for(index):
    ids = {pid for _, (pid, _) in take(load(index, ProcessIds(), loading=LoadingConfig(2, "fork")), 6)}
    assert len(ids) == 2
    assert os.getpid() not in ids
    assert {pid for _, (pid, _) in take(load(index, ProcessIds()), 3)} == {os.getpid()}


def test_epochs_draw_anew(index):
    batches = take(load(index, Recorder()), 12)
    first, second = (
        {example[0]: example for _, (batch, _) in half for example in batch} for half in (batches[:6], batches[6:])
    )
    assert sorted(first) == sorted(second)
    assert [key for key in first if first[key][2] == second[key][2]] == []
    assert len({draw for _, (_, draw) in batches}) == 12


def test_a_crop_is_a_slice_of_its_clip_at_every_kind_of_place(index):
    number_of = {key: number for number, key in enumerate(index.column("key").to_pylist())}
    places = []
    for _, batch in take(load(index, Clips()), 6):
        for key, clip in batch:
            whole = index.read_clip(number_of[key])
            place, remainder = divmod(whole.tobytes().find(clip.tobytes()), 4)
            assert (len(clip), clip.dtype, remainder) == (8000, np.float32, 0)
            assert 0 <= place <= len(whole) - 8000
            places.append(place / (len(whole) - 8000))
    assert np.histogram(places, bins=4, range=(0, 1))[0].min() >= 10  # of 96


def test_a_clip_shorter_than_the_crop_comes_whole(index):
    number_of = {key: number for number, key in enumerate(index.column("key").to_pylist())}
    for _, batch in take(load(index, Clips(), max_crop_s=60.0), 2):
        for key, clip in batch:
            np.testing.assert_array_equal(clip, index.read_clip(number_of[key]))


@pytest.mark.parametrize("loading", [THREAD, LoadingConfig(1, "fork")])
def test_an_error_while_loading_arrives_where_the_batches_are_taken(mini_shards, tmp_path, loading):
    damaged = shutil.copytree(mini_shards, tmp_path / "damaged")
    (damaged / "train-00001.tar").unlink()
    with pytest.raises(PsclapError, match=r"^cannot read shard .*train-00001\.tar.*`dvc repro shard`$"):
        take(load(ShardIndex(damaged), Recorder(), loading=loading), 6)


def test_closing_the_batches_ends_their_thread(index):
    def threads() -> int:
        return sum(thread.name.startswith("psclap-loader") for thread in threading.enumerate())

    batches = iter(load(index, Recorder()))
    next(batches)
    assert threads() == 1
    batches.close()
    assert threads() == 0


def test_a_batch_that_the_ranks_cannot_share_is_refused(index, monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    with pytest.raises(PsclapError, match="global_batch_size 16 must be divisible by the 3 workers"):
        load(index, Recorder())


def test_too_little_shared_memory_is_refused_at_the_start(index, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=100_000)
    monkeypatch.setattr(loader.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(PsclapError, match=r"batches on their way take up to 4 MB of shared memory, and /dev/shm has 0"):
        load(index, Recorder(), loading=LoadingConfig(2, "fork"))
    load(index, Recorder())  # a thread needs none


@pytest.fixture
def remote(mini_shards, s3_server, tmp_path):
    """The shards on an S3 server, and how to open them with a cache of so many bytes."""
    from psclap import storage

    url = storage.join(s3_server, "shards")
    for path in mini_shards.iterdir():
        with storage.writing(storage.join(url, path.name)) as local:
            shutil.copy(path, local)
    return lambda max_bytes=10**9: ShardIndex(url, FileCache(tmp_path / "cache", max_bytes))


@pytest.mark.parametrize("loading", [THREAD, LoadingConfig(2, "fork"), LoadingConfig(2, "forkserver")])
def test_remote_shards_give_the_same_batches(index, remote, loading):
    wanted = take(load(index, Recorder(), "blocks"), 8)
    assert take(load(remote(), Recorder(), "blocks", loading=loading), 8) == wanted


def test_the_cache_stays_in_its_bound_while_every_shard_passes_through_it(index, remote, tmp_path):
    largest = sorted((size for size, _ in index.store.shards.values()), reverse=True)
    bound = sum(largest[:3]) + index.summary["index_bytes"]
    batches = iter(load(remote(bound), Recorder(), "blocks"))
    wanted = iter(load(index, Recorder(), "blocks"))
    seen = set()
    for _ in range(18):
        assert next(batches) == next(wanted)
        files = {path.name: path.stat().st_size for path in (tmp_path / "cache").iterdir()}
        assert sum(files.values()) <= bound
        seen |= files.keys()
    batches.close()
    wanted.close()
    train = {sha for name, (_, sha) in index.store.shards.items() if name.startswith("train")}
    assert train <= seen


@pytest.mark.parametrize(
    ("kind", "advice"),
    [("plain", "shuffle_block_shards, set it, with mixing: concatenate"), ("blocks", "shuffle_block_shards, lower it")],
)
def test_a_cache_that_would_fetch_again_and_again_is_refused(remote, index, kind, advice):
    largest = max(size for size, _ in index.store.shards.values())
    with pytest.raises(PsclapError, match=r"read at the same time, and each would be fetched again") as error:
        load(remote(largest), Recorder(), kind)
    assert advice in str(error.value)


@pytest.mark.parametrize("kind", ["interleaved", "balanced", "buckets"])
def test_blocks_do_not_help_a_plan_that_goes_back_and_forth(remote, index, kind):
    bound = sum(sorted((size for size, _ in index.store.shards.values()), reverse=True)[:4])
    sets, sampling = SAMPLING[kind]
    config = replace(TRAIN, caption_sets=sets, sampling=replace(sampling, shuffle_block_shards=1), global_batch_size=16)
    with pytest.raises(PsclapError, match="read at the same time"):
        Loader(build_stream(config, remote(bound), seed=3), Recorder(), max_crop_s=0.5, loading=THREAD)


def test_a_shard_that_was_changed_on_the_remote_is_refused(remote, mini_shards, s3_server):
    from psclap import storage

    shard = (mini_shards / "train-00001.tar").read_bytes()
    with storage.writing(storage.join(s3_server, "shards/train-00001.tar")) as local:
        local.write_bytes(shard[:-1] + b"x")
    with pytest.raises(PsclapError, match=r"train-00001\.tar is not what the summary of its data set says: SHA-256"):
        take(load(remote(), Recorder()), 6)


def test_resident_memory_is_flat_over_epochs(index):
    batches = iter(load(index, Clips()))

    def resident() -> int:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def pass_over(count: int) -> None:
        for _ in itertools.islice(batches, count):
            pass

    pass_over(60)  # ten epochs to warm up
    before = resident()
    pass_over(600)
    batches.close()
    assert resident() - before < 20e6  # a leak of one clip's crop a batch alone would be 19 MB, of each clip 300


def test_progress_is_json(index):
    position = take(load(index, Recorder()), 1)[0][0]
    assert Position(**json.loads(json.dumps(vars(position)))) == position
