import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from psclap import config
from psclap.errors import ConfigError, PsclapError
from psclap.strict import from_mapping, not_empty

REPOSITORY = Path(__file__).parent.parent
MISSING = object()
CONV = {"model_type": "logmel_conv"}

# (where, value, what the message says besides the key and the value)
BAD_VALUES = [
    ("seed", -1, "must lie in [0, 4294967295]"),
    ("corpus.name", 7, "must be text"),
    ("corpus.options", [1], "must be a section"),
    ("shard.sample_rate_hz", 4000, "must lie in [8000, 48000]"),
    ("shard.max_samples_per_shard", 10.5, "must be a whole number"),
    ("shard.min_duration_s", 0, "must be greater than 0"),
    ("shard.max_reject_rate", 1.01, "must lie in [0, 1]"),
    ("model.normalise_audio", 1, "must be true or false"),
    ("model.projection_dim", True, "must be a whole number"),
    ("model.projection_dropout", float("nan"), "must be a number"),
    ("model.speech.pooling", "max", "must be one of mean, mean_std, cls"),
    ("model.speech.config", "wavlm", "must be a section"),
    ("model.tokenizer_vocab_size", 12, "must be at least 64"),
    ("train.intrinsic.learning_rate", "1e-5", "must be a number; YAML reads it as text, write it as 1.0e-5"),
    ("train.intrinsic.optimizer", "sgd", "must be one of adam, adamw"),
    ("train.situational.caption_sets", [], "must name at least one"),
    ("train.situational.caption_sets", ["rich"], "each element one of intrinsic, situational, combined"),
    ("train.situational.caption_sets", "intrinsic", "must be a list"),
    ("train.combined.max_grad_norm", 0.0, "must be greater than 0"),
    ("train.combined.weight_decay", False, "must be a number"),
    ("train.combined.global_batch_size", 1, "must be at least 2"),
    ("resources.cpu_workers", -1, "must be at least 0"),
    ("resources.gpu_workers", "all", "must be a whole number"),
    ("evaluate.split", "dev", "must be one of train, val, test"),
    ("evaluate.attributes", [], "must name at least one"),
    ("register.alias", None, "must be text"),
    ("register.license", "gratis", "must be a licence of the Hugging Face Hub or its SPDX identifier, such as mit"),
    ("score.variant", "speaker", "must be one of the variants"),
    ("reward.follow_probability", 1.5, "must lie in [0, 1]"),
    ("register", "psclap", "is not a section; it must hold the keys experiment, name_prefix, alias"),
    ("shard.max_sample_per_shard", 3, "unknown key (value 3); did you mean 'max_samples_per_shard'?"),
    ("train.intrinsic.lr", 3, "unknown key (value 3)"),
]


def put(mapping: dict[str, Any], where: str, value: Any) -> None:
    *sections, key = where.split(".")
    for section in sections:
        mapping = mapping[section]
    if value is MISSING:
        del mapping[key]
    else:
        mapping[key] = value


@pytest.mark.parametrize("name", ["demo", "paper"])
def test_every_preset_loads(name):
    assert name in config.preset_names()
    params = config.load_params(config.PRESETS_FOLDER / f"{name}.yaml")
    assert list(params.train) == ["intrinsic", "situational", "combined"]


def test_params_yaml_is_a_preset():
    presets = [path.read_text() for path in config.PRESETS_FOLDER.glob("*.yaml")]
    assert (REPOSITORY / "params.yaml").read_text() in presets


def test_paper_preset_carries_the_published_values():
    params = config.load_params(config.PRESETS_FOLDER / "paper.yaml")
    model = params.model
    assert params.seed == 3407
    assert model.speech.pretrained == "microsoft/wavlm-large"
    assert model.text.pretrained == "ibm-granite/granite-embedding-278m-multilingual"
    assert (model.projection_dim, model.projection_dropout, model.normalise_audio) == (768, 0.5, True)
    for train in params.train.values():
        assert (train.global_batch_size, train.learning_rate, train.optimizer) == (128, 1e-5, "adam")
        assert (train.max_crop_s, train.schedule, train.weight_decay) == (10, "constant", 0)
    intrinsic, situational, combined = params.train.values()
    assert (intrinsic.caption_sets, situational.caption_sets) == (("intrinsic",), ("situational",))
    assert combined.caption_sets == ("intrinsic", "situational")
    assert (intrinsic.max_steps, situational.max_epochs, combined.max_epochs) == (4500, 25, 5)
    assert [train.tag_loss_weight for train in params.train.values()] == [1, 0, 0]
    assert [train.sampling.class_balance for train in params.train.values()] == ["inverse", "none", "none"]
    sampling = intrinsic.sampling
    assert (sampling.min_rare_samples, sampling.rare_block_size, sampling.rare_below_share) == (2, 32, 0.05)
    assert (combined.sampling.mixing, combined.sampling.mixing_stop) == ("interleave", "all")


def test_a_variant_is_the_base_with_its_own_keys_over_it(params_mapping):
    params_mapping["train"]["base"]["weight_decay"] = 0.25
    params_mapping["train"]["combined"]["weight_decay"] = 0.5
    train = config.parse_params(params_mapping).train
    assert [train[name].weight_decay for name in ("intrinsic", "situational", "combined")] == [0.25, 0.25, 0.5]


@pytest.mark.parametrize(("where", "value", "rule"), BAD_VALUES)
def test_a_bad_value_is_named_with_its_key_and_its_rule(params_mapping, where, value, rule):
    put(params_mapping, where, value)
    with pytest.raises(ConfigError) as error:
        config.parse_params(params_mapping)
    (line,) = [line for line in str(error.value).splitlines() if line.startswith(f"{where}: ")]
    assert repr(value) in line
    assert rule in line


@pytest.mark.parametrize(
    "where", ["seed", "score", "shard.max_reject_rate", "model.speech.pooling", "train.base", "train.intrinsic"]
)
def test_a_missing_key_is_named(params_mapping, where):
    put(params_mapping, where, MISSING)
    with pytest.raises(ConfigError, match=r"missing|must list the sections") as error:
        config.parse_params(params_mapping)
    assert where.removeprefix("train.") in str(error.value)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"shard.min_duration_s": 9.0, "shard.max_duration_s": 9.0}, "shard: min_duration_s 9.0 must be below"),
        ({"train.combined.max_epochs": 3}, "train.combined: max_steps 1200 and max_epochs 3: give one"),
        ({"train.combined.max_steps": None}, "train.combined: max_steps None and max_epochs None: give one"),
        ({"train.combined.caption_sets": ["combined"] * 2}, "train.combined: caption_sets ['combined', 'combined']"),
        (
            {"train.intrinsic.sampling.min_rare_samples": 33},
            "train.intrinsic.sampling: min_rare_samples 33 exceeds rare_block_size 32",
        ),
        ({"train.base.sampling.mixing_corpora": ["a", "a"]}, "mixing_corpora ['a', 'a'] names a corpus twice"),
        ({"train.base.sampling.bucket_batches": 1}, "train.base.sampling.bucket_batches: 1 must be at least 2"),
        ({"train.intrinsic.sampling.distinct_captions": True}, "train.intrinsic.sampling: distinct_captions spreads"),
        (
            {"train.intrinsic.sampling.bucket_batches": 4},
            "train.intrinsic.sampling: bucket_batches and max_batch_s regroup",
        ),
        (
            {"train.base.sampling.mixing_probabilities": [0.5, 0.0]},
            "train.base.sampling: mixing_probabilities [0.5, 0.0] must all be above 0",
        ),
        (
            {"train.combined.sampling": {"mixing": "concatenate", "mixing_probabilities": [0.5, 0.5]}},
            "train.combined.sampling: mixing_probabilities are for mixing: interleave",
        ),
        (
            {"train.combined.sampling": {"mixing_corpora": ["a", "b"], "mixing_probabilities": [0.5, 0.5]}},
            "train.combined: sampling.mixing_probabilities [0.5, 0.5]: one is needed for each of the 4 sources",
        ),
        ({"resources.loading.start_method": "spawn"}, "resources.loading.start_method: 'spawn' must be one of fork"),
        ({"model.speech.pretrained": "wavlm"}, "model.speech: give either `pretrained`"),
        ({"model.speech.config": None}, "model.speech: give either `pretrained`"),
        ({"model.text.config": {"hidden_size": 8}}, "model.text: `config` needs a model_type"),
        ({"model.speech": {"pooling": "cls", "config": CONV}}, "model: speech.pooling 'cls'"),
        ({"model.text.pooling": "mean_std"}, "model: text.pooling 'mean_std'"),
        ({"model.tokenizer_vocab_size": None}, "model: tokenizer_vocab_size is needed"),
        ({"model.text": {"pooling": "cls", "pretrained": "granite"}}, "model: tokenizer_vocab_size is needed"),
        ({"variants": ["intrinsic", "combined"]}, "variants: ['intrinsic', 'combined'] must list the sections"),
        ({"variants": ["intrinsic"] * 3}, "variants: ['intrinsic', 'intrinsic', 'intrinsic'] must list the sections"),
        ({"train.combined": None}, "train.combined: None is not a section"),
        ({"reward.variants": ["speaker"]}, "reward.variants: 'speaker' must be one of the variants"),
        ({"corpus.name": "manifest"}, "reward.variants: ['combined'] must be [] with the corpus 'manifest'"),
    ],
)
def test_a_rule_between_keys_is_named_with_its_section(params_mapping, changes, said):
    for where, value in changes.items():
        put(params_mapping, where, value)
    with pytest.raises(ConfigError) as error:
        config.parse_params(params_mapping)
    assert said in str(error.value)


SECTION_LEAVES = [case for case in BAD_VALUES if case[0].count(".") and case[0] != "score.variant"]


@given(cases=st.lists(st.sampled_from(SECTION_LEAVES), min_size=2, unique_by=lambda case: case[0]))
def test_all_bad_values_are_reported_together(cases):
    mapping = yaml.safe_load((config.PRESETS_FOLDER / "demo.yaml").read_text())
    for where, value, _ in cases:
        put(mapping, where, value)
    with pytest.raises(ConfigError) as error:
        config.parse_params(mapping)
    said = [line.split(": ")[0] for line in str(error.value).splitlines()]
    assert {where for where, _, _ in cases} == set(said)


@pytest.mark.parametrize("section", [None, "shard", "model", "model.speech", "train.combined", "score"])
def test_configuration_is_frozen(params_mapping, section):
    value: Any = config.parse_params(params_mapping)
    for name in section.split(".") if section else ():
        value = value[name] if isinstance(value, dict) else getattr(value, name)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(value, dataclasses.fields(value)[0].name, None)


@pytest.mark.parametrize(
    ("text", "said"),
    [("seed: [1", "is not valid YAML"), ("", "is not a section"), ("just words", "is not a section")],
)
def test_a_file_that_is_no_mapping_is_refused_by_name(tmp_path, text, said):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=said) as error:
        config.load_params(path)
    assert str(path) in str(error.value)


def test_a_missing_params_file_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the params file .*absent.yaml"):
        config.load_params(tmp_path / "absent.yaml")


def test_use_preset_switches_between_presets_but_keeps_edits_unless_forced(tmp_path):
    target = tmp_path / "params.yaml"
    config.use_preset("demo", target)
    config.use_preset("paper", target)
    edited = target.read_text() + "# mine\n"
    target.write_text(edited)
    with pytest.raises(PsclapError, match="your edits would be lost"):
        config.use_preset("demo", target)
    assert target.read_text() == edited
    config.use_preset("demo", target, force=True)
    assert target.read_text() == (config.PRESETS_FOLDER / "demo.yaml").read_text()


def test_use_preset_names_the_known_presets(tmp_path):
    with pytest.raises(ConfigError, match="no preset 'papre'; presets: demo, paper"):
        config.use_preset("papre", tmp_path / "params.yaml")
    assert not list(tmp_path.iterdir())


@dataclass(frozen=True)
class Part:
    name: str
    weight: float = 1.0


@dataclass(frozen=True)
class Nested:
    parts: tuple[Part, ...] = field(default=(Part("only"),), metadata=not_empty())
    names: Mapping[str, str | None] = field(default_factory=dict)
    maps: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    urls: str | tuple[str, ...] = "a"
    fields: Literal["own"] | Mapping[str, str] = "own"


def test_lists_of_sections_mappings_and_alternatives_are_read():
    mapping = {
        "parts": [{"name": "a", "weight": 2}, {"name": "b"}],
        "names": {"x": "y", "z": None},
        "maps": {"a": {"b": 3}},
        "urls": ["a", "b"],
        "fields": {"own": "theirs"},
    }
    expected = Nested((Part("a", 2.0), Part("b")), mapping["names"], mapping["maps"], ("a", "b"), mapping["fields"])
    assert from_mapping(Nested, mapping, "it") == expected
    assert from_mapping(Nested, {"urls": "b", "fields": "own"}, "it") == Nested(urls="b")


@pytest.mark.parametrize(
    ("mapping", "said"),
    [
        ({"parts": []}, "it.parts: [] must name at least one"),
        ({"parts": [{"name": "a"}, {"nam": "b"}]}, "it.parts[1].nam: unknown key (value 'b'); did you mean 'name'?"),
        ({"parts": [{"name": "a"}, "b"]}, "it.parts[1]: 'b' is not a section; it must hold the keys name, weight"),
        ({"parts": {"name": "a"}}, "must be a list of sections with the keys name, weight"),
        ({"names": {"x": 3}}, "it.names.x: 3 must be text or null"),
        ({"names": {3: "x"}}, "it.names: the key 3 must be text; put it in quotes"),
        ({"names": ["x"]}, "it.names: ['x'] must be a section"),
        ({"maps": {"a": {"b": "c"}}}, "it.maps.a.b: 'c' must be a whole number"),
        ({"urls": 3}, "it.urls: 3 must be text or a list, each element text"),
        ({"urls": ["a", 3]}, "it.urls: ['a', 3] must be text or a list, each element text"),
        ({"fields": "theirs"}, "it.fields: 'theirs' must be one of own or a section"),
    ],
)
def test_what_is_broken_inside_a_list_or_a_mapping_is_named_with_its_place(mapping, said):
    with pytest.raises(ConfigError) as error:
        from_mapping(Nested, mapping, "it")
    assert said in str(error.value)
