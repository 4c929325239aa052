"""retrain.yaml, the soundness of data, and fetching, with a real DVC."""

import copy
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines.dvc import DvcError, dvc, stages_to_run
from pipelines.retrain import fetch, prepare
from psclap.errors import ConfigError, PsclapError
from psclap.retraining.config import Copy, DataConfig, FetchConfig, RetrainConfig, TestSetConfig, load_retrain_config
from psclap.retraining.data import UnsoundError, check_data
from psclap.strict import from_mapping

ROOT = Path(__file__).parent.parent
SMALL: dict[str, Any] = {
    "test_sets": {"fixed": {"shards": "data/shards"}},
    "variants": {"combined": {"model": "m", "policy": {"fixed": {"classification/gender/UAR": {"min": 0.5}}}}},
}


def changed(path: str, value: Any) -> dict[str, Any]:
    mapping = copy.deepcopy(SMALL)
    section = mapping
    *parents, last = path.split(".")
    for name in parents:
        section = section[name]
    section[last] = value
    return mapping


def test_the_projects_own_file_and_that_of_the_docs_are_valid(tmp_path: Path) -> None:
    assert set(load_retrain_config(ROOT / "retrain.yaml").variants) == {"combined", "intrinsic", "situational"}
    (example,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/retraining.md").read_text(), re.DOTALL)
    (tmp_path / "retrain.yaml").write_text(example)
    config = load_retrain_config(tmp_path / "retrain.yaml")
    assert config.fetch.copies == (Copy("s3://bucket/manifest.csv", "data/manifest.csv"),)
    assert replace(config, drift=None) != config


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("varaints", {}, "retrain.varaints: unknown key"),
        ("variants", {}, "must name at least one"),
        ("variants.combined.policy", {}, "each variant needs a test set, and each of these a metric"),
        ("variants.combined.policy", {"fixed": {}}, "each variant needs a test set, and each of these a metric"),
        (
            "variants.combined.policy",
            {"other": {"classification/gender/UAR": {"min": 1}}},
            r"\['other'\] must be among",
        ),
        (
            "variants.combined.policy",
            {"fixed": {"gender/UAR": {"min": 1}}},
            "'gender/UAR' must be retrieval/CAPTION_SET",
        ),
        ("variants.combined.policy", {"fixed": {"classification/gender/UAR": {}}}, "asks for nothing"),
        ("variants.combined.policy", {"fixed": {"classification/gender/UAR": {"max_regression": -1}}}, "at least 0"),
        ("variants.combined.policy", {"fixed": {"classification/gender/UAR": {"min": "1e-1"}}}, "write it as 1.0e-5"),
        ("variants.combined.policy", {"fixed": {"classification/gender/UAR": {"max_regression": 1}}}, "a min or a max"),
        ("experiment", "it's", "must be of letters"),
        ("test_sets.fixed", {"shards": "s", "split": "night"}, "'night' must be one of train, val, test"),
        ("data", {"max_reject_rate": 2}, r"must lie in \[0, 1\]"),
    ],
)
def test_broken_keys_are_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_mapping(RetrainConfig, changed(path, value), "retrain")


def test_a_file_that_is_none_is_told(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read the file"):
        load_retrain_config(tmp_path / "absent.yaml")
    (tmp_path / "retrain.yaml").write_text("variants: [")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load_retrain_config(tmp_path / "retrain.yaml")
    (tmp_path / "retrain.yaml").write_text("")
    with pytest.raises(ConfigError, match="retrain: None is not a section"):
        load_retrain_config(tmp_path / "retrain.yaml")


def test_data_is_sound_or_everything_wrong_with_it_is_told(mini_shards: Path) -> None:
    fixed = {"fixed": TestSetConfig(str(mini_shards))}
    check_data(DataConfig(str(mini_shards), {"train": 96}, {"train": 0.01}, {"test": 1}, 0.0), fixed)
    with pytest.raises(UnsoundError) as told:
        check_data(DataConfig(str(mini_shards), {"train": 97, "night": 1}, {"val": 5.0}, {"test": 1000}), fixed)
    lines = str(told.value).splitlines()
    assert lines[0] == f"the data in {mini_shards} is not sound:"
    assert [line.split(" has ")[0].strip() for line in lines[1:]] == ["train", "night", "val", "test"]
    assert "night has 0 clips, and min_clips asks for 1" in str(told.value)


def test_clips_that_are_trained_on_are_no_test(mini_shards: Path) -> None:
    with pytest.raises(UnsoundError, match="96 clips of the test set seen are in train, such as demo-train-00000"):
        check_data(DataConfig(str(mini_shards)), {"seen": TestSetConfig(str(mini_shards), "train")})


PIPELINE = {
    "stages": {"prepare": {"cmd": "cat data/manifest.csv >> read.txt", "outs": [{"read.txt": {"persist": True}}]}}
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder in which a real DVC runs a stage `prepare` that writes down what it reads."""
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "-m", "dvc", "init", "--no-scm", "-q"], check=True)
    (tmp_path / "dvc.yaml").write_text(yaml.safe_dump(PIPELINE))
    return tmp_path


def test_a_manifest_that_changed_is_read_anew_and_one_that_did_not_is_not(project: Path, s3_server: str) -> None:
    import fsspec

    url = f"{s3_server}/retraining/manifest.csv"
    config = from_mapping(
        RetrainConfig, {**SMALL, "fetch": {"copies": [{"url": url, "path": "data/manifest.csv"}]}}, "retrain"
    )

    def night() -> str:
        fetch(config.fetch)
        prepare(config)
        return (project / "read.txt").read_text()

    fsspec.filesystem("s3").pipe_file(url, b"one\n")
    assert night() == "one\n"
    assert night() == "one\n"
    fsspec.filesystem("s3").pipe_file(url, b"two\n")
    fetch(config.fetch)  # and killed before it was read
    assert night() == "one\ntwo\n"
    assert night() == "one\ntwo\n"
    assert stages_to_run([]) == []


def test_what_dvc_brought_is_read_anew_too(project: Path) -> None:
    """`prepare` names neither the file nor its .dvc file as what it depends on."""
    (project / "elsewhere.csv").write_text("one\n")
    dvc("import-url", str(project / "elsewhere.csv"), "manifest.csv")
    (project / "data").mkdir()
    (project / "data/manifest.csv").symlink_to(project / "manifest.csv")
    config = from_mapping(RetrainConfig, {**SMALL, "fetch": {"update": ["manifest.csv.dvc"]}}, "retrain")
    for _ in range(2):
        fetch(config.fetch)
        prepare(config)
    (project / "elsewhere.csv").write_text("two\n")
    fetch(config.fetch)
    prepare(config)
    assert (project / "read.txt").read_text() == "one\ntwo\n"


def test_what_cannot_be_fetched_is_an_error(project: Path) -> None:
    with pytest.raises(PsclapError, match=r"nowhere/manifest\.csv"):
        fetch(FetchConfig(copies=(Copy("/nowhere/manifest.csv", "data/manifest.csv"),)))
    assert not (project / "data").exists()


def test_a_command_of_dvc_that_fails_is_an_error(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(DvcError, match="`dvc repro absent` failed with status") as told:
        dvc("repro", "absent")
    assert not told.value.passing
    assert "absent" in capsys.readouterr().err
    with pytest.raises(DvcError, match="dvc repro --dry"):
        stages_to_run(["absent"])
