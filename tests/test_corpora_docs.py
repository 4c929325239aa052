"""docs/corpora.md is true: its examples build, and its tables list the options that there are."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml

from psclap.corpora import CORPORA, build_corpus
from psclap.corpora.record import FIELDS, RecordOptions

TEXT = (Path(__file__).parent.parent / "docs" / "corpora.md").read_text()
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", TEXT, re.MULTILINE | re.DOTALL))
EXAMPLES = [yaml.safe_load(block)["corpus"] for block in re.findall(r"```yaml\n(.*?)```", TEXT, re.DOTALL)]
SHARED = {field.name for field in dataclasses.fields(RecordOptions)}


def test_every_corpus_has_a_section_with_an_example():
    assert set(SECTIONS) == set(CORPORA)
    assert {example["name"] for example in EXAMPLES} == set(CORPORA)


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example["name"])
def test_every_example_is_valid(example):
    assert type(build_corpus(example["name"], example["options"])) is CORPORA[example["name"]]


@pytest.mark.parametrize("name", CORPORA)
def test_the_table_of_options_is_complete(name):
    options = {field.name for field in dataclasses.fields(CORPORA[name])}
    is_shared = issubclass(CORPORA[name], RecordOptions) and name != "manifest"
    expected = options - SHARED if is_shared else options
    assert set(re.findall(r"^\| `(\w+)` \|", SECTIONS[name], re.MULTILINE)) == expected


def test_every_field_name_is_listed():
    (names,) = re.findall(r"^Our names are (`key`.*)\.$", TEXT, re.MULTILINE)
    assert set(re.findall(r"`(\w+)`", names)) == {"key", "audio", *FIELDS}
