import gzip
import io
import json
import re
import tarfile
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile

from psclap import audio, storage
from psclap.corpora import build_corpus
from psclap.errors import ConfigError, PsclapError
from psclap.schema import Caption
from psclap.shards.index import ShardIndex

FIELDS = {"captions": "json.caption", "speaker": "json.who.id", "transcript": "txt"}
OPTIONS = {"fields": FIELDS, "defaults": {"source": "web", "split": "train", "language": "sv"}}


def wav(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    wave = np.random.default_rng(seed).uniform(-0.1, 0.1, 8000)
    soundfile.write(stream, wave, 16000, format="WAV")
    return stream.getvalue()


def sample(key: str, seed: int = 0, **fields) -> dict[str, bytes]:
    """The members of a sample, by name."""
    meta = {"caption": f"Voice {key}.", "who": {"id": "s1"}, **fields}
    return {f"{key}.json": json.dumps(meta).encode(), f"{key}.wav": wav(seed), f"{key}.txt": b"Hej!\n"}


def pack(path: Path, *samples: dict[str, bytes], tar_format: int = tarfile.USTAR_FORMAT) -> Path:
    with tarfile.open(path, "w", format=tar_format) as tar:
        for name, data in (item for members in samples for item in members.items()):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def read(urls, **options):
    urls = urls if isinstance(urls, list) else str(urls)
    return list(build_corpus("webdataset", {**OPTIONS, "urls": urls, **options}).utterances(Path("unused"), 2))


def test_a_sample_becomes_an_utterance_whose_audio_stays_in_the_tar(tmp_path):
    pack(tmp_path / "a.tar", sample("001", 1), sample("002", 2, caption=["One.", "Two."]))
    one, two = read(tmp_path / "a.tar")
    assert (one.speaker, one.source, one.split, one.language, one.transcript) == ("s1", "web", "train", "sv", "Hej!")
    assert one.captions == (Caption("combined", "Voice 001."),)
    assert [caption.text for caption in two.captions] == ["One.", "Two."]
    assert len({one.key, two.key}) == 2
    assert one.audio.startswith(f"{tmp_path}/a.tar#bytes=")
    assert [storage.read(u.audio) for u in (one, two)] == [wav(1), wav(2)]


def test_the_shards_of_psclap_are_read_as_they_are(mini_shards, mini_corpus):
    found = build_corpus("webdataset", {"urls": f"{mini_shards}/*.tar", "fields": "psclap"}).utterances(mini_shards, 2)
    of_key = {utterance.key: vars(utterance) | {"audio": ""} for utterance in mini_corpus[1]}
    index = ShardIndex(mini_shards)
    clips = {index.row(number)["key"]: index.read_clip(number) for number in range(len(index))}
    keys = set()
    for utterance in found:
        assert vars(utterance) | {"audio": ""} == of_key[utterance.key]
        np.testing.assert_array_equal(audio.load(storage.read(utterance.audio), 16000), clips[utterance.key])
        keys.add(utterance.key)
    assert keys == set(of_key)


@pytest.mark.parametrize("tar_format", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_and_foreign_names_work(tmp_path, tar_format):
    keys = ["x" * 150 + "/y" + "z" * 120, "år/" + "ö" * 80]
    pack(tmp_path / "a.tar", *(sample(key, seed) for seed, key in enumerate(keys)), tar_format=tar_format)
    found = read(tmp_path / "a.tar")
    assert [storage.read(u.audio) for u in found] == [wav(0), wav(1)]
    assert [u.captions[0].text for u in found] == [f"Voice {key}." for key in keys]
    assert all(re.fullmatch("[A-Za-z0-9_-]{1,90}", u.key) for u in found)


def test_names_need_not_be_utf8(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w", format=tarfile.USTAR_FORMAT, encoding="latin-1") as tar:
        for name, data in sample("ö1").items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    (found,) = read(tmp_path / "a.tar")
    assert re.fullmatch("_1-[0-9a-f]{10}", found.key)
    assert storage.read(found.audio) == wav()


def test_urls_are_a_list_with_braces_and_wildcards_in_order(tmp_path):
    for number in (8, 9, 10, 11):
        pack(tmp_path / f"t-{number:03}.tar", sample(f"k{number}"))
    pack(tmp_path / "other.tar", sample("other"))
    found = read([f"{tmp_path}/t-{{008..010}}.tar", f"{tmp_path}/o*.tar"])
    assert [u.captions[0].text for u in found] == ["Voice k8.", "Voice k9.", "Voice k10.", "Voice other."]
    with pytest.raises(PsclapError, match=r"there is no file .*/t-012\.tar"):
        read(f"{tmp_path}/t-{{011..012}}.tar")
    with pytest.raises(PsclapError, match=r"no file matches .*/none-\*\.tar \(corpus\.options\.urls\)"):
        read(f"{tmp_path}/none-*.tar")
    with pytest.raises(PsclapError, match=r"'\{8\}' must be alternatives \{a,b\} or a range \{000\.\.010\}"):
        read(f"{tmp_path}/t-{{8}}.tar")


def test_the_key_may_begin_with_the_name_of_the_shard(tmp_path):
    for name in ("a", "b"):
        pack(tmp_path / f"{name}.tar", sample("000"))
    assert len({u.key for u in read(tmp_path / "?.tar")}) == 1
    assert len({u.key for u in read(tmp_path / "?.tar", key_prefix="{shard}-")}) == 2


def test_the_audio_is_the_first_of_the_extensions_that_is_there(tmp_path):
    both = {**sample("1"), "1.FLAC": b"flac", "1.mono.wav": b"mono"}
    pack(tmp_path / "a.tar", both)
    assert [storage.read(u.audio) for u in read(tmp_path / "a.tar")] == [b"flac"]
    assert [storage.read(u.audio) for u in read(tmp_path / "a.tar", audio=["mono.wav", "wav"])] == [b"mono"]
    with pytest.raises(PsclapError, match=r"a\.tar sample 1 has no audio \(mp3\), only \['flac', 'json', 'mono\.wav'"):
        read(tmp_path / "a.tar", audio=["mp3"])


def test_templates_tag_maps_and_splits_work_on_json_fields(tmp_path):
    pack(tmp_path / "a.tar", sample("1", emotion="anger", split="dev"), sample("2", emotion="joy", split="holdout"))
    fields = {"speaker": "json.who.id", "split": "json.split"}
    one, two = read(
        tmp_path / "a.tar",
        fields=fields,
        defaults={"source": "web"},
        caption_template="A voice in {json.emotion}.",
        situational_tag_map={"json.emotion": {"anger": "angry", "joy": None}},
    )
    assert [(u.split, u.captions[0].text) for u in (one, two)] == [
        *(("val", "A voice in anger."), ("test", "A voice in joy."))
    ]
    assert (one.situational_tags, two.situational_tags) == (("angry",), ())


def incomplete(missing: str) -> dict[str, bytes]:
    return {name: data for name, data in sample("2").items() if not name.endswith(missing)}


@pytest.mark.parametrize(
    ("missing", "said"),
    [("wav", "has no audio"), ("txt", "has no txt, only"), ("json", r"has no json\.\w+(\.id)?, only")],
)
def test_an_incomplete_sample_is_refused_or_skipped_and_counted(tmp_path, capsys, missing, said):
    pack(tmp_path / "a.tar", sample("1"), incomplete(missing), sample("3"))
    with pytest.raises(PsclapError, match=rf"{tmp_path}/a\.tar sample 2 {said}"):
        read(tmp_path / "a.tar")
    found = read(tmp_path / "a.tar", skip_incomplete=True)
    assert [u.captions[0].text for u in found] == ["Voice 1.", "Voice 3."]
    assert "1 incomplete samples are left out" in capsys.readouterr().out


def test_an_absent_json_field_is_refused_unless_it_is_marked(tmp_path):
    pack(tmp_path / "a.tar", sample("1"))
    fields = {**FIELDS, "transcript": "json.words"}
    with pytest.raises(
        PsclapError, match=r"sample 1 has no json\.words, .* write json\.words\? where it may be absent"
    ):
        read(tmp_path / "a.tar", fields=fields)
    (found,) = read(tmp_path / "a.tar", fields={**fields, "transcript": "json.words?", "intrinsic_tags": "tags.json?"})
    assert (found.transcript, found.intrinsic_tags) == ("", ())


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"caption": 3, "who": {"id": ""}}, r"sample 1: json\.who\.id is empty; every clip needs its speaker"),
        ({"caption": [3]}, r"sample 1: caption 3 must be text"),
        ({"caption": None}, r"sample 1: json\.caption is empty; every clip needs a caption"),
        ({"caption": {"a": "b"}}, r"sample 1: json\.caption \{'a': 'b'\} must be text"),
    ],
)
def test_a_bad_value_is_named_with_its_shard_and_sample(tmp_path, fields, said):
    pack(tmp_path / "a.tar", sample("1", **fields))
    with pytest.raises(PsclapError, match=rf"a\.tar {said}"):
        read(tmp_path / "a.tar")


def test_json_that_cannot_be_read_is_named(tmp_path):
    pack(tmp_path / "a.tar", {**sample("1"), "1.json": b"{"})
    with pytest.raises(PsclapError, match=r"a\.tar sample 1: json cannot be read: "):
        read(tmp_path / "a.tar")


def test_a_large_member_is_not_taken_for_text(tmp_path):
    pack(tmp_path / "a.tar", {**sample("1"), "1.txt": bytes(2 << 20)})
    with pytest.raises(PsclapError, match=r"1\.txt has 2097152 bytes, too many for text or JSON; correct fields"):
        read(tmp_path / "a.tar")


def test_a_member_without_an_extension_is_named(tmp_path):
    pack(tmp_path / "a.tar", sample("1"), {"README": b"Hello."})
    with pytest.raises(PsclapError, match=r"a\.tar: the member README is not KEY\.EXTENSION"):
        read(tmp_path / "a.tar")


def test_a_link_is_refused(tmp_path):
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        link = tarfile.TarInfo("1.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "2.wav"
        tar.addfile(link)
    with pytest.raises(PsclapError, match=r"1\.wav is a link or another special file"):
        read(tmp_path / "a.tar")


def test_a_tar_as_gnu_tar_packs_a_folder_is_read(tmp_path):
    (tmp_path / "clips").mkdir()
    for name, data in sample("1").items():
        (tmp_path / "clips" / name).write_bytes(data)
    with tarfile.open(tmp_path / "a.tar", "w") as tar:
        tar.add(tmp_path / "clips", "./")
    (found,) = read(tmp_path / "a.tar")
    assert storage.read(found.audio) == wav()


def test_a_compressed_tar_is_refused_with_the_way_out(tmp_path):
    pack(tmp_path / "a.tar", sample("1"))
    (tmp_path / "a.tar.gz").write_bytes(gzip.compress((tmp_path / "a.tar").read_bytes()))
    with pytest.raises(PsclapError, match=r"a\.tar\.gz is compressed: .* decompress it once"):
        read(tmp_path / "a.tar.gz")


def test_no_truncated_tar_is_taken_for_a_whole_one(tmp_path):
    whole = pack(tmp_path / "whole.tar", sample("1"), sample("2")).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        end = tar.getmembers()[-1].offset_data + tarfile.BLOCKSIZE
    for size in (0, 100, 512, 700, end // 2, end - 600, end):
        (tmp_path / "a.tar").write_bytes(whole[:size])
        with pytest.raises(PsclapError, match=r"a\.tar is (cut off|broken|no whole tar file)"):
            read(tmp_path / "a.tar")


def test_a_broken_header_and_joined_tars_are_refused(tmp_path):
    data = pack(tmp_path / "whole.tar", sample("1"), sample("2")).read_bytes()
    with tarfile.open(tmp_path / "whole.tar") as tar:
        second = tar.getmember("2.json").offset
    (tmp_path / "a.tar").write_bytes(data[:second] + b"\xff" * 512 + data[second + 512 :])
    with pytest.raises(PsclapError, match=rf"a\.tar is broken at byte {second}"):
        read(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(data * 2)
    with pytest.raises(PsclapError, match=r"a\.tar is broken at byte \d+, or holds another tar from there on"):
        read(tmp_path / "a.tar")
    (tmp_path / "a.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(PsclapError, match=r"a\.tar is no whole tar file"):
        read(tmp_path / "a.tar")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"fields": {**FIELDS, "captoin": "txt"}}, r"corpus\.options: fields: \['captoin'\] must be among our names"),
        ({"fields": "other"}, r"corpus\.options\.fields: 'other' must be one of psclap or a section"),
        ({"fields": {"captions": "txt"}}, r"fields has no field for speaker; name it, or set defaults\.speaker"),
        ({"fields": {"speaker": "txt"}}, r"fields has no captions and no transcript"),
        ({"urls": []}, r"urls: \[\] must name at least one"),
        ({"audio": []}, r"audio: \[\] must name at least one"),
        ({"skip_incomplete": "yes"}, r"skip_incomplete: 'yes' must be true or false"),
    ],
)
def test_broken_options_are_refused_before_anything_is_read(options, said):
    with pytest.raises(ConfigError, match=said):
        build_corpus("webdataset", {**OPTIONS, "urls": "absent.tar", **options})


def test_shards_may_lie_on_s3(tmp_path, s3_server):
    folder = f"{s3_server}/webdataset"
    samples = [[sample(f"{shard}{number}", 10 * shard + number) for number in range(5)] for shard in (1, 2)]
    for number, of_shard in enumerate(samples):
        data = pack(tmp_path / "a.tar", *of_shard).read_bytes()
        fsspec.filesystem("s3").pipe(f"{folder}/train-{number:03d}.tar", data)
        fsspec.filesystem("s3").pipe(f"{folder}/cut-{number:03d}.tar", data[:-11000])
    found = read(f"{folder}/train-{{000..001}}.tar")
    assert [u.captions[0].text for u in found] == [f"Voice {s}{n}." for s in (1, 2) for n in range(5)]
    assert [u.audio for u in read(f"{folder}/train-*.tar")] == [u.audio for u in found]
    assert [storage.read(u.audio) for u in found] == [wav(10 * s + n) for s in (1, 2) for n in range(5)]
    with pytest.raises(PsclapError, match=rf"{folder}/cut-000\.tar is (cut off|no whole tar file)"):
        read(f"{folder}/cut-000.tar")
    with pytest.raises(PsclapError, match=rf"there is no file {folder}/none\.tar"):
        read(f"{folder}/none.tar")
