from pathlib import Path

import pytest
from typer.testing import CliRunner

from psclap.cli import app
from psclap.corpora import build_corpus
from psclap.errors import ConfigError

DEMO = {"train_clips": 24, "val_clips": 24, "test_clips": 24}
HEADER = "key,audio,speaker,source,split,captions\n"


def manifest(path: Path, *keys: str, source: str = "own") -> dict:
    path.write_text(HEADER + "".join(f"{key},{key[:9]}.wav,s1,{source},train,A voice.\n" for key in keys))
    return {"name": "manifest", "options": {"path": str(path)}}


def read(folder, *members):
    return list(build_corpus("several", {"corpora": list(members)}).utterances(folder, 2))


def test_corpora_are_chained_and_their_keys_are_told_apart(tmp_path):
    one = {**manifest(tmp_path / "a.csv", "k1", "k2", source="first"), "prefix": "a"}
    two = {**manifest(tmp_path / "b.csv", "k1", source="second"), "prefix": "b"}
    found = read(tmp_path, one, two)
    assert [(u.key, u.source, u.speaker) for u in found] == [
        *(("a-k1", "first", "s1"), ("a-k2", "first", "s1"), ("b-k1", "second", "s1"))
    ]
    assert [u.audio for u in found] == [str(tmp_path / name) for name in ("k1.wav", "k2.wav", "k1.wav")]


def test_a_long_key_stays_unique_and_short(tmp_path):
    keys = ["x" * 89 + "1", "x" * 89 + "2", "x" * 84]
    found = read(tmp_path, {**manifest(tmp_path / "a.csv", *keys), "prefix": "prefix"})
    assert len({u.key for u in found}) == 3
    assert all(len(u.key) <= 90 and u.key.startswith("prefix-") for u in found)


def test_corpora_that_make_audio_have_a_folder_each(tmp_path):
    inner = {"name": "several", "options": {"corpora": [{"name": "demo", "options": DEMO, "prefix": "in"}]}}
    found = read(tmp_path, {**inner, "prefix": "out"})
    assert len(found) == len({u.key for u in found}) == 72
    assert {str(Path(u.audio).parent) for u in found} == {"out/in/audio"}
    assert all(u.key.startswith("out-in-demo-") and (tmp_path / u.audio).is_file() for u in found)


@pytest.mark.parametrize(
    ("members", "said"),
    [
        ([], r"corpus\.options\.corpora: \[\] must name at least one"),
        ([{"name": "demo"}], r"corpora\[0\]\.prefix: missing key"),
        ([{"name": "demo", "prefix": "a-b"}], r"prefix 'a-b' must be 1 to 16 letters and digits"),
        ([{"name": "demo", "prefix": "a"}] * 2, r"prefixes \['a', 'a'\] must differ"),
        ([{"name": "demmo", "prefix": "a"}], r"corpora\[0\]\.name: 'demmo' is not a corpus; known corpora: demo"),
        (
            [{"name": "demo", "prefix": "a"}, {"name": "demo", "prefix": "b", "options": {"seeed": 1}}],
            r"corpus\.options: corpora\[1\]\.options\.seeed: unknown key \(value 1\); did you mean 'seed'",
        ),
    ],
)
def test_broken_members_are_named(members, said):
    with pytest.raises(ConfigError, match=said):
        build_corpus("several", {"corpora": members})


def test_config_check_reports_broken_options_of_any_corpus(tmp_path, params_mapping):
    import yaml

    member = {"name": "webdataset", "prefix": "a", "options": {"urls": "x.tar", "feilds": "psclap"}}
    params_mapping["corpus"] = {"name": "several", "options": {"corpora": [member]}}
    params_mapping["reward"]["variants"] = []
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params_mapping))
    result = CliRunner().invoke(app, ["config", "check", str(tmp_path / "params.yaml")])
    assert result.exit_code == 1
    assert "corpora[0].options.feilds: unknown key (value 'psclap'); did you mean 'fields'?" in str(result.exception)
    member["options"] = {"urls": "x.tar", "fields": "psclap"}
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params_mapping))
    assert CliRunner().invoke(app, ["config", "check", str(tmp_path / "params.yaml")]).exit_code == 0
