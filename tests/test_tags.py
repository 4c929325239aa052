import pytest

from psclap import tags
from psclap.errors import PsclapError


def test_the_vocabulary_is_59_distinct_tags_of_four_groups():
    groups = (tags.RICH_INTRINSIC, tags.BASIC_INTRINSIC, tags.RICH_SITUATIONAL, tags.BASIC_SITUATIONAL)
    assert [len(group) for group in groups] == [28, 5, 23, 3]
    assert sum(groups, ()) == tags.VOCABULARY
    assert len(set(tags.VOCABULARY)) == 59


@pytest.mark.parametrize("attribute", tags.ATTRIBUTES)
def test_an_attribute_has_distinct_known_candidates(attribute):
    candidates = tags.ATTRIBUTES[attribute]
    assert len(set(candidates)) == len(candidates) >= 2
    assert tags.check_tags(candidates) == candidates


def test_only_lisp_and_hushed_are_candidates_without_being_training_tags():
    assert tags.KNOWN_TAGS - set(tags.VOCABULARY) == {"lisp", "hushed"}


def test_no_two_tags_share_a_synonym():
    words = [word for synonyms in tags.SYNONYMS.values() for word in synonyms]
    assert len(set(words)) == len(words)
    assert all(synonyms[0] == tag for tag, synonyms in tags.SYNONYMS.items())
    assert set(tags.SYNONYMS) <= set(tags.VOCABULARY)


@pytest.mark.parametrize("tag", tags.VOCABULARY)
def test_training_prompts_hold_the_default_prompt_and_every_synonym(tag):
    prompts = tags.training_prompts(tag)
    assert prompts[0] == tags.default_prompt(tag) == f"A person is speaking in a {tag} style."
    assert len(set(prompts)) == len(prompts)
    assert all(any(word in prompt for prompt in prompts) for word in tags.SYNONYMS.get(tag, (tag,)))


def test_a_tag_without_synonyms_has_only_the_default_prompt():
    assert "Scottish" not in tags.SYNONYMS
    assert tags.training_prompts("Scottish") == ("A person is speaking in a Scottish style.",)


def test_an_attribute_name_stands_for_all_its_tags():
    assert tags.resolve_candidates(["texture"]) == tags.ATTRIBUTES["texture"]


def test_tags_and_attributes_mix_and_a_repeated_candidate_counts_once():
    assert tags.resolve_candidates(["raspy", "gender", "male", "raspy"]) == ("raspy", "male", "female")


@pytest.mark.parametrize(("name", "near"), [("rasp", "raspy"), ("gendr", "gender"), ("vocal fry", "vocal-fry")])
def test_an_unknown_candidate_gets_suggestions(name, near):
    with pytest.raises(PsclapError, match=f"unknown tag or attribute '{name}'.*did you mean .*{near}"):
        tags.resolve_candidates([name, "male"])


def test_a_name_that_is_near_nothing_gets_the_list_of_attributes():
    with pytest.raises(PsclapError, match=r"unknown tag or attribute 'qqqq'.*known attributes: pitch, texture"):
        tags.resolve_candidates(["qqqq"])


@pytest.mark.parametrize("names", [[], ["male"], ["male", "male"]])
def test_fewer_than_two_candidates_are_refused(names):
    with pytest.raises(PsclapError, match="at least 2 candidate tags"):
        tags.resolve_candidates(names)


def test_check_tags_names_the_unknown_tag_and_takes_no_attribute_for_one():
    with pytest.raises(PsclapError, match=r"unknown tag 'huskyy'.*did you mean husky"):
        tags.check_tags(["male", "huskyy"])
    with pytest.raises(PsclapError, match="unknown tag 'gender'"):
        tags.check_tags(["gender"])
