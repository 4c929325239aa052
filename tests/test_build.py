"""Shards built for real: on Ray and without, killed at any moment, on an S3 server, and of real speech."""

import csv
import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import urllib.request
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import fsspec
import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import soxr
import webdataset
from conftest import SHARDING
from test_loader import THREAD, TRAIN, Clips, take
from test_sampling import PLAIN

from pipelines.cluster import ray_map, ray_session
from pipelines.shard import build_shards
from psclap import audio, storage
from psclap.corpora import build_corpus
from psclap.data_config import ShardConfig
from psclap.errors import PsclapError
from psclap.loader import Loader
from psclap.loudness import MAX_TRUE_PEAK_DBTP, integrated_loudness, true_peak
from psclap.parallel import process_map
from psclap.schema import Caption, Utterance, utterances_to_table
from psclap.shards.cache import FileCache
from psclap.shards.index import ShardIndex
from psclap.shards.unit import Unit, write_unit
from psclap.shards.writer import ShardJob, split_into_units, write_shards
from psclap.soundness.integrity import check_location
from psclap.training.data import build_stream

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
CONFIG = replace(SHARDING, max_samples_per_shard=10)
UNITS = 18  # of 96, 24 and 48 clips, in tens
CARD = {"data_card.md", "data_card.png"}


@dataclass(frozen=True)
class Source:
    """A corpus: its folder, and its utterances, whose audio paths are relative to it."""

    folder: Path
    utterances: pa.Table


@dataclass(frozen=True)
class Place:
    """Where a build goes."""

    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "data" / "shards"

    @property
    def work(self) -> Path:
        return self.folder / "runs" / "shards"

    def build(self, source: Source, config: ShardConfig = CONFIG):
        return build_shards(source.utterances, source.folder, config, self.output, self.work)


@pytest.fixture(scope="module")
def corpus(mini_corpus) -> Source:
    """Not to be changed."""
    folder, utterances = mini_corpus
    relative = (replace(u, audio=str(Path(u.audio).relative_to(folder))) for u in utterances)
    return Source(folder, utterances_to_table(relative))


@pytest.fixture
def own_corpus(corpus, tmp_path) -> Source:
    """A copy of the corpus, to be changed."""
    return replace(corpus, folder=Path(shutil.copytree(corpus.folder, tmp_path / "corpus")))


@pytest.fixture(scope="module")
def ray(mini_corpus, s3_server) -> Iterator[None]:
    """One Ray for the module, whose workers know the S3 server."""
    with ray_session():
        yield


@pytest.fixture(scope="module")
def undisturbed(corpus, ray, tmp_path_factory) -> Path:
    """What a build that nothing disturbed leaves."""
    place = Place(tmp_path_factory.mktemp("undisturbed"))
    place.build(corpus)
    return place.output


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def inodes(folder: Path) -> dict[str, tuple[int, int]]:
    """What changes when a file is written again, by its name."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in folder.glob("[!.]*.tar")}


def wait_until(condition: Callable[[], bool], every_s: float = 0.005) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end, "it did not come true"
        time.sleep(every_s)


# On Ray


@pytest.mark.parametrize("processes", [1, 2])
def test_ray_and_processes_of_this_machine_write_the_same_bytes(corpus, undisturbed, tmp_path, processes):
    job = ShardJob(corpus.utterances, corpus.folder, CONFIG, str(tmp_path / "shards"), str(tmp_path / "receipts"))
    write_shards(job, partial(process_map, processes=processes))
    built = files(undisturbed)
    assert files(tmp_path / "shards") == {name: built[name] for name in built.keys() - CARD}
    assert len([name for name in built if name.endswith(".tar")]) == UNITS


def test_another_machine_with_the_same_files_writes_the_same_bytes(own_corpus, undisturbed, place):
    """Its files have other times, and lie in another folder."""
    for path in own_corpus.folder.rglob("*"):
        os.utime(path, (10**9, 10**9))
    place.build(own_corpus)
    assert files(place.output) == files(undisturbed)
    assert not place.work.exists()


def test_units_whose_worker_is_killed_are_written_by_another(corpus, undisturbed, tmp_path, ray):
    marks = tmp_path / "marks"
    marks.mkdir()

    def killed_once(unit: Unit) -> None:
        mark = marks / unit.name
        if unit.name in ("train-00001", "test-00000") and not mark.exists():
            write_unit(replace(unit, receipts=str(tmp_path / "lost")))  # the shard stands, its receipt does not
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        write_unit(unit)

    job = ShardJob(corpus.utterances, corpus.folder, CONFIG, str(tmp_path / "shards"), str(tmp_path / "receipts"))
    write_shards(job, lambda _, units: ray_map(killed_once, units))
    assert {path.name for path in marks.iterdir()} == {"train-00001", "test-00000"}
    built = files(undisturbed)
    assert files(tmp_path / "shards") == {name: built[name] for name in built.keys() - CARD}


def test_a_job_that_kills_every_worker_ends_with_a_sentence(ray):
    with pytest.raises(PsclapError, match="6 worker processes died over part-7; memory"):
        list(ray_map(lambda name: os.kill(os.getpid(), signal.SIGKILL), ["part-7"]))


# Killed

SCRIPT = """
import json, sys
from pathlib import Path
import pyarrow.parquet as pq
from pipelines.shard import build_shards
from psclap.data_config import ShardConfig
table, folder, config, output, work = sys.argv[1:]
build_shards(pq.read_table(table), Path(folder), ShardConfig(**json.loads(config)), Path(output), Path(work))
"""


def processes_of(mark: str) -> list[int]:
    """The processes that have `mark` in their environment: a build and all that it started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def start_build(source: Source, place: Place, config: ShardConfig, mark: str) -> subprocess.Popen:
    """Starts a build in a process of its own, which has `mark` in its environment and tells `place`/log."""
    place.folder.mkdir(exist_ok=True)
    table = place.folder / "utterances.parquet"
    pq.write_table(source.utterances, table)
    arguments = [table, source.folder, json.dumps(asdict(config)), place.output, place.work]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **dict([mark.split("=")])}
    with (place.folder / "log").open("w") as stream:
        command = [sys.executable, "-c", SCRIPT, *map(str, arguments)]
        return subprocess.Popen(command, env=environment, stdout=stream, stderr=stream, start_new_session=True)


def build_and_kill(source: Source, place: Place, config: ShardConfig, at: Callable[[], bool]) -> None:
    """Starts a build, and kills its group as soon as `at()`."""
    mark = f"PSCLAP_TEST_BUILD={uuid.uuid4()}"
    build = start_build(source, place, config, mark)
    try:
        wait_until(lambda: build.poll() is not None or at(), 0.005 if config.url is None else 0.1)
        assert build.poll() is None, (place.folder / "log").read_text()
        os.killpg(build.pid, signal.SIGKILL)
        build.wait()
        wait_until(lambda: not processes_of(mark), 0.1)
    finally:
        for pid in processes_of(mark):
            os.kill(pid, signal.SIGKILL)


def receipts_at_least(place: Place, count: int) -> Callable[[], bool]:
    return lambda: len(list((place.work / "receipts").glob("[!.]*.parquet"))) >= count


@pytest.fixture(scope="module")
def killed(corpus, undisturbed, tmp_path_factory) -> Place:
    """A build that was killed in the middle. Not to be changed."""
    place = Place(tmp_path_factory.mktemp("killed") / "place")
    build_and_kill(corpus, place, CONFIG, receipts_at_least(place, 5))
    return place


@pytest.fixture
def interrupted(killed, tmp_path) -> Place:
    """A copy of the build that was killed in the middle."""
    return Place(Path(shutil.copytree(killed.folder, tmp_path / "killed")))


def check_whole_and_go_on(source: Source, place: Place, undisturbed: Path) -> int:
    """Checks what a killed build left, and that the next one goes on from there; returns how much was done."""
    assert not place.output.exists()
    shards, wanted = place.work / "shards", files(undisturbed)
    for path in shards.glob("[!.]*.tar"):
        assert path.read_bytes() == wanted[path.name]
        with tarfile.open(path) as tar:
            assert len(tar.getnames()) % 2 == 0
    done = {f"{path.name[:-25]}.tar" for path in (place.work / "receipts").glob("[!.]*.parquet")}
    before = inodes(shards)
    assert done <= before.keys()
    place.build(source)
    assert files(place.output) == wanted
    after = inodes(place.output)
    assert {name: after[name] for name in done} == {name: before[name] for name in done}
    assert not place.work.exists()
    assert {path.name for path in place.output.parent.iterdir()} == {"shards"}
    return len(done)


def test_a_build_killed_in_the_middle_goes_on_from_there(corpus, interrupted, undisturbed):
    assert 5 <= check_whole_and_go_on(corpus, interrupted, undisturbed) < UNITS


def at_the_first_write(place: Place) -> bool:
    return any((place.work / "shards").glob("*")) if (place.work / "shards").exists() else False


@pytest.mark.parametrize("moment", ["first write", "first receipt", "last receipt"])
def test_a_build_killed_at_any_moment_goes_on_from_there(corpus, place, undisturbed, moment):
    moments = {
        "first write": partial(at_the_first_write, place),
        "first receipt": receipts_at_least(place, 1),
        "last receipt": receipts_at_least(place, UNITS),
    }
    build_and_kill(corpus, place, CONFIG, moments[moment])
    (place.folder / "utterances.parquet").unlink()
    done = check_whole_and_go_on(corpus, place, undisturbed)
    assert done >= {"first write": 0, "first receipt": 1, "last receipt": UNITS}[moment]


def test_without_ray_a_process_that_is_killed_ends_the_build_with_a_sentence(corpus, place, undisturbed):
    build = start_build(corpus, place, CONFIG, "PSCLAP_TEST_BUILD=a process")
    wait_until(lambda: receipts_at_least(place, 1)() and len(psutil.Process(build.pid).children()) > 0)
    psutil.Process(build.pid).children()[0].kill()
    assert build.wait(60) == 1
    assert "a process that wrote shards was killed" in (place.folder / "log").read_text()
    (place.folder / "utterances.parquet").unlink()
    assert check_whole_and_go_on(corpus, place, undisturbed) >= 1


# Changed after it was interrupted


def units_with_receipts(source: Source, place: Place, config: ShardConfig = CONFIG) -> list[Unit]:
    job = ShardJob(source.utterances, source.folder, config, str(place.work / "shards"), str(place.work / "receipts"))
    return [unit for unit in split_into_units(job) if (place.work / "receipts" / unit.receipt_name).exists()]


def check_as_fresh(source: Source, place: Place, config: ShardConfig, fresh: Path) -> None:
    """Builds, and compares with a build that had nothing to go on from."""
    place.build(source, config)
    Place(fresh).build(source, config)
    assert files(place.output) == files(Place(fresh).output)


def test_a_changed_file_has_just_its_unit_built_again(own_corpus, interrupted, tmp_path):
    done = units_with_receipts(own_corpus, interrupted)
    assert len(done) >= 5
    changed = done[2]
    path = own_corpus.folder / changed.utterances["audio"][3].as_py()
    wave, rate_hz = soundfile.read(path)
    soundfile.write(path, wave[: len(wave) // 2], rate_hz)
    before = inodes(interrupted.work / "shards")
    check_as_fresh(own_corpus, interrupted, CONFIG, tmp_path / "fresh")
    after = inodes(interrupted.output)
    kept = {f"{unit.name}.tar" for unit in done if unit.name != changed.name}
    assert {name for name in before if after[name] == before[name]} >= kept
    assert after[f"{changed.name}.tar"] != before[f"{changed.name}.tar"]


@pytest.mark.parametrize("changes", [{"max_samples_per_shard": 25}, {"loudness_lufs": -30.0}], ids=str)
def test_another_configuration_has_all_built_again(corpus, interrupted, tmp_path, changes):
    before = inodes(interrupted.work / "shards")
    check_as_fresh(corpus, interrupted, replace(CONFIG, **changes), tmp_path / "fresh")
    after = inodes(interrupted.output)
    assert [name for name in after if after[name] == before.get(name)] == []
    assert not {f"train-{number:05d}.tar" for number in range(4, 10)} & after.keys() or len(after) == UNITS


def test_a_change_that_is_taken_back_leaves_no_shard_of_it(corpus, interrupted, undisturbed):
    """Tars are padded: a shard of other content may have the length that an older receipt tells."""
    unit = units_with_receipts(corpus, interrupted)[0]
    other = corpus.utterances.to_pylist()
    of_unit = set(unit.utterances["key"].to_pylist())
    for row in other:
        if row["key"] in of_unit:
            row["transcript"] = row["transcript"].swapcase()
    changed = replace(corpus, utterances=pa.Table.from_pylist(other, schema=corpus.utterances.schema))
    work = interrupted.work
    job = ShardJob(changed.utterances, changed.folder, CONFIG, str(work / "shards"), str(work / "receipts"))

    def interrupted_after_the_changed_one(write, units):
        write(next(one for one in units if one.name == unit.name))
        raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        write_shards(job, interrupted_after_the_changed_one)
    shard = f"{unit.name}.tar"
    assert (work / "shards" / shard).stat().st_size == (undisturbed / shard).stat().st_size
    assert (work / "shards" / shard).read_bytes() != (undisturbed / shard).read_bytes()
    interrupted.build(corpus)
    assert files(interrupted.output) == files(undisturbed)


# Shards full by bytes


@pytest.mark.parametrize("limit", [1, 150_000, 400_000])
def test_shards_that_are_full_by_bytes(corpus, undisturbed, tmp_path, limit):
    config = replace(CONFIG, max_samples_per_shard=40, max_bytes_per_shard=limit)
    shards = tmp_path / "shards"
    job = ShardJob(corpus.utterances, corpus.folder, config, str(shards), str(tmp_path / "receipts"))
    write_shards(job, map)
    index = ShardIndex(shards)
    rows = index.take(range(len(index))).to_pylist()
    assert {"train-00000.tar", "train-00000-1.tar", "train-00000-2.tar", "train-00001.tar"} <= {*index.shard_names}
    clips = Counter(row["shard"] for row in rows)
    for name, count in clips.items():
        assert count == 1 or (shards / name).stat().st_size <= limit
    assert (max(clips.values()) == 1) == (limit == 1)
    whole = ShardIndex(undisturbed)
    place_of = {key: number for number, key in enumerate(whole.column("key").to_pylist())}
    assert sorted(row["key"] for row in rows) == sorted(place_of)
    for number, row in enumerate(rows):
        assert index.read_flac(number) == whole.read_flac(place_of[row["key"]])
    paths = [str(shards / name) for name in dict.fromkeys(row["shard"] for row in rows)]
    assert [sample["__key__"] for sample in webdataset.WebDataset(paths, shardshuffle=False)] == [
        row["key"] for row in rows
    ]
    assert loaded(index, 16).keys() == {row["key"] for row in rows if row["split"] == "train"}
    assert check_location(shards, deep=True, processes=2).sound


@pytest.mark.parametrize("over", [0, 1])
def test_the_bound_of_bytes_is_met_exactly(corpus, undisturbed, tmp_path, over):
    """The whole tar counts, its headers and padding too."""
    size = (undisturbed / "val-00000.tar").stat().st_size
    config = replace(CONFIG, max_bytes_per_shard=size - over)
    shards = tmp_path / "shards"
    write_shards(ShardJob(corpus.utterances, corpus.folder, config, str(shards), str(tmp_path / "receipts")), map)
    index = json.loads((shards / "summary.json").read_text())["shards"]
    assert ("val-00000-1.tar" in index) == bool(over)
    assert max(shard["bytes"] for shard in index.values()) <= size - over


def loaded(index: ShardIndex, batch_size: int) -> dict[str, np.ndarray]:
    """One epoch of whole training clips, by key."""
    train = replace(TRAIN, caption_sets=("combined",), sampling=PLAIN, global_batch_size=batch_size, max_crop_s=60.0)
    stream = build_stream(train, index, seed=1)
    batches = take(Loader(stream, Clips(), max_crop_s=60.0, loading=THREAD), len(stream.plan(0)))
    return {key: clip for _, batch in batches for key, clip in batch}


# On S3


@pytest.fixture(scope="module")
def bucket(s3_server):
    """A bucket that keeps every version: it can say how often an object was written."""
    import boto3

    client = boto3.client("s3")
    client.create_bucket(Bucket="psclap-builds")
    client.put_bucket_versioning(Bucket="psclap-builds", VersioningConfiguration={"Status": "Enabled"})
    return Bucket(client, "psclap-builds")


@dataclass(frozen=True)
class Bucket:
    client: object
    name: str

    def url(self, folder: str) -> str:
        return f"s3://{self.name}/{folder}"

    def prefix(self, url: str) -> str:
        """What the keys of all objects below a URL begin with."""
        return f"{url.removeprefix(f's3://{self.name}/')}/"

    def names(self, url: str) -> list[str]:
        """What lies below a URL, receipts too, by what follows it."""
        prefix = self.prefix(url)
        pages = self.client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        return [entry["Key"].removeprefix(prefix) for page in pages for entry in page.get("Contents", [])]

    def objects(self, url: str) -> dict[str, bytes]:
        """The bytes of each of these."""
        prefix = self.prefix(url)
        return {
            name: self.client.get_object(Bucket=self.name, Key=prefix + name)["Body"].read() for name in self.names(url)
        }

    def versions(self, url: str) -> Counter[str]:
        """How often each object below a URL was written."""
        prefix = self.prefix(url)
        pages = self.client.get_paginator("list_object_versions").paginate(Bucket=self.name, Prefix=prefix)
        return Counter(entry["Key"].removeprefix(prefix) for page in pages for entry in page.get("Versions", []))


def without_receipts(objects: dict[str, bytes]) -> dict[str, bytes]:
    return {name: data for name, data in objects.items() if not name.startswith("receipts/")}


def written_once(versions: Counter[str]) -> set[str]:
    """The shards and receipts that were written a single time."""
    return {name for name, count in versions.items() if count == 1 and name.endswith((".tar", ".parquet"))} - {
        "index.parquet"
    }


@pytest.fixture(scope="module")
def remote(corpus, ray, bucket, tmp_path_factory) -> tuple[Place, str]:
    """A build whose shards went to S3, and their URL."""
    place = Place(tmp_path_factory.mktemp("remote"))
    built = place.build(corpus, replace(CONFIG, url=bucket.url("remote/")))
    assert built.report.sound
    return place, json.loads((place.output / "summary.json").read_text())["url"]


def test_shards_on_s3_are_those_of_a_folder(remote, undisturbed, bucket, tmp_path):
    place, url = remote
    local = files(undisturbed)
    assert url.startswith(bucket.url("remote/"))
    assert {path.name for path in place.output.iterdir()} == {"summary.json", "rejects.jsonl", *CARD}
    assert json.loads((place.output / "summary.json").read_text()) == {**json.loads(local["summary.json"]), "url": url}
    for name in {"rejects.jsonl", *CARD}:
        assert (place.output / name).read_bytes() == local[name]
    assert without_receipts(bucket.objects(url)) == {name: local[name] for name in local.keys() - CARD}
    cache = FileCache(tmp_path / "cache", 10**9)
    here, there = ShardIndex(undisturbed), ShardIndex(place.output, cache)
    for number in range(0, len(here), 7):
        assert there.row(number) == here.row(number)
        assert there.read_flac(number) == here.read_flac(number)
    cached = {path.name for path in (tmp_path / "cache").iterdir()}
    assert {hashlib.sha256(local["train-00000.tar"]).hexdigest(), there.sha256} <= cached


def test_a_remote_build_is_sound_by_its_url_and_by_the_folder_that_it_leaves(remote):
    place, url = remote
    for location in (url, place.output):
        report = check_location(location, deep=True, processes=2)
        assert report.sound, report.findings
        assert report.statistics["clips"] == 168


def test_a_second_remote_build_writes_no_shard_again_and_another_one_goes_elsewhere(remote, corpus, bucket, place):
    first, url = remote
    everything = bucket.versions(url).keys() - {"index.parquet", "rejects.jsonl", "summary.json"}
    assert len(everything) == 2 * UNITS
    place.build(corpus, replace(CONFIG, url=bucket.url("remote")))
    assert files(place.output) == files(first.output)
    assert written_once(bucket.versions(url)) == everything
    before = bucket.versions(url)
    place.build(corpus, replace(CONFIG, url=bucket.url("remote"), max_samples_per_shard=50))
    other = json.loads((place.output / "summary.json").read_text())["url"]
    assert other != url
    assert other.rpartition("/")[0] == url.rpartition("/")[0]
    assert len([name for name in bucket.objects(other) if name.endswith(".tar")]) == 4
    assert bucket.versions(url) == before


def test_a_remote_build_killed_in_the_middle_goes_on_from_there(corpus, remote, undisturbed, bucket, place):
    url = f"{bucket.url('killed')}/{remote[1].rpartition('/')[2]}"
    config = replace(CONFIG, url=bucket.url("killed"))

    def receipts() -> set[str]:  # asked for often, and the server copies every object to list its versions
        return {name for name in bucket.names(url) if name.startswith("receipts/")}

    build_and_kill(corpus, place, config, lambda: len(receipts()) >= 4)
    assert not place.output.exists()
    local = files(undisturbed)
    left = without_receipts(bucket.objects(url))
    assert left
    assert left == {name: local[name] for name in left}
    assert "summary.json" not in left
    done = receipts()
    done |= {f"{name.removeprefix('receipts/')[:-25]}.tar" for name in done}
    place.build(corpus, config)
    assert without_receipts(bucket.objects(url)) == {name: local[name] for name in local.keys() - CARD}
    assert done <= written_once(bucket.versions(url))
    assert files(place.output).keys() == {"summary.json", "rejects.jsonl", *CARD}


@contextmanager
def wrong_credentials(monkeypatch) -> Iterator[None]:
    """Has the server check credentials, which it does not by default."""

    def unchecked_requests(count: str) -> None:
        request = urllib.request.Request(
            f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/reset-auth",
            count.encode(),
            {"Content-Type": "application/octet-stream"},
        )
        urllib.request.urlopen(request).close()

    unchecked_requests("0")
    try:
        yield
    finally:
        unchecked_requests("inf")


@contextmanager
def stopped_server(monkeypatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        fsspec.filesystem("s3").clear_instance_cache()
        yield
    fsspec.filesystem("s3").clear_instance_cache()


@contextmanager
def no_bucket(monkeypatch) -> Iterator[None]:
    yield


@pytest.mark.parametrize(
    ("trouble", "url", "said"),
    [
        (no_bucket, "s3://psclap-absent/shards", "bucket"),
        (wrong_credentials, "s3://psclap-builds/refused", ""),
        (stopped_server, "s3://psclap-builds/unreachable", ""),
    ],
)
def test_a_remote_that_cannot_be_written_is_named(corpus, bucket, ray, place, monkeypatch, trouble, url, said):
    with trouble(monkeypatch), pytest.raises(PsclapError, match=rf"{url}.*{said}") as error:
        place.build(corpus, replace(CONFIG, url=url))
    assert "Traceback" not in str(error.value)
    assert not list(place.output.parent.iterdir())


def test_from_audio_and_a_manifest_on_s3_to_batches(bucket, ray, place, tmp_path):
    originals, lines = {}, ["key,audio,speaker,source,split,captions"]
    filesystem = fsspec.filesystem("s3")
    for number, split in enumerate(["train"] * 8 + ["val"] * 3):
        wave = np.random.default_rng(number).uniform(-0.9, 0.9, 5000 + 700 * number).astype(np.float32)
        data = io.BytesIO()
        soundfile.write(data, wave, 16000, format="WAV", subtype="FLOAT")
        filesystem.pipe(bucket.url(f"source/audio/ä {number}.wav"), data.getvalue())
        lines.append(f"clip-{number},audio/ä {number}.wav,s{number},own,{split},A voice.")
        originals[f"clip-{number}"] = wave
    filesystem.pipe(bucket.url("source/manifest.csv"), "\n".join(lines).encode())
    manifest = build_corpus("manifest", {"path": bucket.url("source/manifest.csv"), "defaults": {"language": "de"}})
    source = Source(tmp_path, utterances_to_table(manifest.utterances(tmp_path, 1)))
    built = place.build(source, replace(CONFIG, url=bucket.url("from-manifest")))
    assert (built.summary["clips"], built.summary["rejected"]) == (11, 0)
    assert {split: counts["clips"] for split, counts in built.summary["splits"].items()} == {
        **{"train": 8, "val": 3, "test": 0}
    }
    index = ShardIndex(place.output, FileCache(tmp_path / "cache", 10**9))
    clips = loaded(index, 4)
    assert clips.keys() == {f"clip-{number}" for number in range(8)}
    for key, clip in clips.items():
        np.testing.assert_allclose(clip, originals[key], rtol=0, atol=1 / 32768)


def test_from_webdataset_shards_on_s3_to_batches(mini_shards, mini_corpus, bucket, ray, place, tmp_path):
    for path in mini_shards.glob("*.tar"):
        fsspec.filesystem("s3").put_file(str(path), bucket.url(f"webdataset/{path.name}"))
    shards = build_corpus("webdataset", {"urls": bucket.url("webdataset/*.tar"), "fields": "psclap"})
    source = Source(tmp_path, utterances_to_table(shards.utterances(tmp_path, 2)))
    built = place.build(source, replace(CONFIG, url=bucket.url("from-webdataset")))
    assert (built.summary["clips"], built.summary["rejected"]) == (168, 0)
    assert built.summary["splits"] == json.loads((mini_shards / "summary.json").read_text())["splits"]
    clips = loaded(ShardIndex(place.output, FileCache(tmp_path / "cache", 10**9)), 16)
    known = {utterance.key: utterance for utterance in mini_corpus[1]}
    assert clips.keys() == {key for key, utterance in known.items() if utterance.split == "train"}
    for key, clip in clips.items():
        original = audio.load(known[key].audio, 16000).clip(-1, 1)
        np.testing.assert_allclose(clip, original, rtol=0, atol=1 / 32768)


# Rejects


@pytest.mark.parametrize("remotely", [False, True])
def test_too_many_rejects_are_all_listed_and_a_higher_rate_goes_on(own_corpus, bucket, ray, place, remotely):
    keys, paths = (own_corpus.utterances[name].to_pylist() for name in ("key", "audio"))
    bad = iter(zip(keys, paths, strict=True))
    expected = {}
    for reason, rest in (("empty", 0), ("truncated", 0.7), ("missing", None)):
        for _ in range(3):
            key, path = next(bad)
            data = (own_corpus.folder / path).read_bytes()
            (own_corpus.folder / path).unlink()
            if rest is not None:
                (own_corpus.folder / path).write_bytes(data[: int(rest * len(data))])
            expected[key] = reason
    config = replace(CONFIG, url=bucket.url("rejects") if remotely else None)
    with pytest.raises(PsclapError, match=r"9 of 168 clips rejected \(.*\), more than shard\.max_reject_rate") as error:
        place.build(own_corpus, config)
    listed = next(word for word in str(error.value).split() if "rejects.jsonl" in word).rstrip(".")
    assert listed.startswith(bucket.url("rejects/")) if remotely else listed.startswith(str(place.work))
    rejects = [json.loads(line) for line in storage.read(listed).splitlines()]
    assert {reject["key"]: reject["reason"] for reject in rejects} == expected
    assert all(reject["detail"] and Path(reject["audio"]).is_relative_to(own_corpus.folder) for reject in rejects)
    assert not list(place.output.parent.iterdir())
    shards = listed.rpartition("/")[0]
    before = bucket.versions(shards) if remotely else inodes(Path(shards))
    built = place.build(own_corpus, replace(config, max_reject_rate=0.1))
    assert (built.summary["clips"], built.summary["rejected"]) == (159, 9)
    assert len(built.summary["shards"]) == UNITS
    assert (place.output / "rejects.jsonl").read_bytes() == b"".join(json.dumps(r).encode() + b"\n" for r in rejects)
    if remotely:
        assert written_once(before) == written_once(bucket.versions(shards))
    else:
        assert inodes(place.output) == before


# Loudness


def test_clips_have_the_loudness_that_is_asked_for_unless_their_peaks_forbid_it(corpus, tmp_path):
    spiky = np.random.default_rng(0).uniform(-0.001, 0.001, 32000).astype(np.float32)
    spiky[::4000] = 0.5
    soundfile.write(tmp_path / "spiky.wav", spiky, 16000, subtype="FLOAT")
    caption = (Caption("combined", "A click."),)
    clip = Utterance("spiky", str(tmp_path / "spiky.wav"), "s", "test", "train", caption)
    rows = corpus.utterances.slice(0, 30)
    table = pa.concat_tables([rows, utterances_to_table([clip])])

    def clips(name: str, loudness_lufs: float | None) -> dict[str, np.ndarray]:
        config = replace(CONFIG, loudness_lufs=loudness_lufs)
        write_shards(ShardJob(table, corpus.folder, config, str(tmp_path / name), str(tmp_path / f"r-{name}")), map)
        index = ShardIndex(tmp_path / name)
        return {key: index.read_clip(number) for number, key in enumerate(index.column("key").to_pylist())}

    levelled, plain = clips("levelled", -23.0), clips("plain", None)
    off = {key: abs(integrated_loudness(wave, 16000) + 23) for key, wave in levelled.items()}
    limited = {key for key in off if off[key] > 0.5}
    assert "spiky" in limited
    assert len(limited) < 10
    for key in limited:
        assert 20 * np.log10(true_peak(levelled[key], 16000)) == pytest.approx(MAX_TRUE_PEAK_DBTP, abs=0.05)
    for row in rows.to_pylist():
        original = audio.load(corpus.folder / row["audio"], 16000).clip(-1, 1)
        np.testing.assert_allclose(plain[row["key"]], original, rtol=0, atol=1 / 32768)
    assert any(abs(integrated_loudness(wave, 16000) + 23) > 1 for wave in plain.values())


# Real speech

SPEECH = Path(os.environ.get("PSCLAP_SPEECH_DATA", ROOT / "../shared/data/speech")).resolve()


@pytest.mark.skipif(not (SPEECH / "manifest.csv").is_file(), reason="PSCLAP_SPEECH_DATA has no manifest.csv")
def test_real_speech_of_every_rate_comes_out_as_it_went_in(place, ray):
    options = {
        "path": str(SPEECH / "manifest.csv"),
        "columns": {"audio": "path", "source": "corpus"},
        "caption_template": "A {gender} voice.",
        "caption_set": "combined",
    }
    manifest = build_corpus("manifest", options)
    source = Source(SPEECH, utterances_to_table(manifest.utterances(place.folder, 1)))
    place.build(source, replace(SHARDING, max_samples_per_shard=100, max_reject_rate=0.1))
    with (SPEECH / "manifest.csv").open(newline="") as stream:
        of_path = {str(SPEECH / row["path"]): row for row in csv.DictReader(stream)}
    of_key = {row["key"]: of_path[row["audio"]] for row in source.utterances.to_pylist()}
    index = ShardIndex(place.output)
    keys = index.column("key").to_pylist()
    rejects = [json.loads(line) for line in (place.output / "rejects.jsonl").read_text().splitlines()]
    assert sorted([*keys, *(reject["key"] for reject in rejects)]) == sorted(of_key)
    too_short = {key for key, row in of_key.items() if float(row["duration"]) < 0.2}
    assert {reject["key"] for reject in rejects if reject["reason"] == "too short"} == too_short
    assert len(rejects) == len(too_short)
    for number, key in enumerate(keys):
        assert index.num_samples[number] / 16000 == pytest.approx(float(of_key[key]["duration"]), abs=1e-3)
    seen: Counter[str] = Counter()
    clips = loaded(index, 20)
    for number, key in enumerate(keys):
        row = of_key[key]
        clip = clips[key] if key in clips else index.read_clip(number)
        seen[row["sample_rate"]] += 1
        if seen[row["sample_rate"]] <= 25:
            wave, rate_hz = soundfile.read(SPEECH / row["path"], dtype="float32")
            original = soxr.resample(wave, rate_hz, 16000) if rate_hz != 16000 else wave
            np.testing.assert_allclose(clip, original.clip(-1, 1), rtol=0, atol=1 / 32768)
    assert {rate for rate, count in seen.items() if count >= 4} >= {"8000", "16000", "22050", "48000"}


# Refused at the start


@pytest.mark.parametrize(
    ("url", "said"),
    [("nowhere://bucket/shards", "nowhere"), ("/data/shards", "must be a URL"), ("s3:/bucket/shards", "must be a URL")],
)
def test_a_url_that_is_none_is_refused(corpus, place, ray, url, said):
    with pytest.raises(PsclapError, match=said) as error:
        place.build(corpus, replace(CONFIG, url=url))
    assert url in str(error.value)
    assert not list(place.output.parent.iterdir()) if place.output.parent.exists() else True


@pytest.mark.parametrize("url", [None, "s3://psclap-builds/unused"])
@pytest.mark.parametrize("kind", ["below a file", "a file", "read-only"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(corpus, bucket, place, kind, url):
    output, work = place.output, place.work
    if kind == "below a file":
        (place.folder / "data").touch()
    elif kind == "a file":
        (place.folder / "data").mkdir()
        output.touch()
    else:
        if os.geteuid() == 0:
            pytest.skip("root may write everywhere")
        (place.folder / "data").mkdir(mode=0o500)
    with pytest.raises(PsclapError, match=rf"cannot write .*{output}"):
        build_shards(corpus.utterances, corpus.folder, replace(CONFIG, url=url), output, work)
    assert not work.exists()
    assert not bucket.versions("s3://psclap-builds/unused")


def test_an_output_on_another_file_system_is_written_all_the_same(corpus, undisturbed, place):
    with contextmanager(_memory_folder)() as memory:
        if memory.stat().st_dev == place.folder.stat().st_dev:
            pytest.skip("/dev/shm is no file system of its own")
        build_shards(corpus.utterances, corpus.folder, CONFIG, memory / "data" / "shards", place.work)
        assert files(memory / "data" / "shards") == files(undisturbed)
        assert not place.work.exists()


def _memory_folder() -> Iterator[Path]:
    folder = Path("/dev/shm") / f"psclap-{uuid.uuid4()}"
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
