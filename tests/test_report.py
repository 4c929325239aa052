"""The HTML report without a browser: what is in the file."""

import base64
import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from setuptools.config.pyprojecttoml import read_configuration
from small_model import save_small_model
from small_report import HOSTILE, Parsed, altered_shards, lengthened, sets_of, with_text, write_page

from psclap import audio
from psclap.embedding import Embedder
from psclap.errors import PsclapError
from psclap.evaluation.evaluate import TestSets
from psclap.evaluation.retrieval import RetrievalSet
from psclap.pairs import Pairs
from psclap.report.clips import MAX_DURATION_S, encode_mp3
from psclap.report.curve import rank_curve
from psclap.report.page import write_html
from psclap.report.projection import clip_map
from psclap.report.queries import best_and_worst, best_right, find, sides
from psclap.schema import Utterance
from psclap.shards.index import ShardIndex
from psclap.tags import ATTRIBUTES

ROOT = Path(__file__).parent.parent
Corpus = tuple[Path, list[Utterance]]


@pytest.fixture(scope="module")
def embedders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Embedder, Embedder]:
    folder = tmp_path_factory.mktemp("models")
    return tuple(Embedder(save_small_model(folder / str(seed), seed)) for seed in (1, 2))


@pytest.fixture(scope="module")
def page(mini_shards: Path, embedders: tuple, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TestSets, dict]:
    path = tmp_path_factory.mktemp("page") / "report.html"
    test_sets = sets_of(mini_shards)
    return path, test_sets, write_page(path, test_sets, *embedders)


@pytest.fixture(scope="module")
def parsed(page: tuple) -> Parsed:
    return Parsed(page[0].read_text(encoding="utf-8"))


def test_nothing_is_outside_the_file(parsed: Parsed) -> None:
    named = [
        (name, value)
        for _, attributes in parsed.elements
        for name, value in attributes.items()
        if name in ("src", "href", "srcset", "poster", "data", "action", "xlink:href", "background")
    ]
    assert len(named) > 20
    assert all(value.startswith(("data:audio/mpeg;base64,", "#")) for _, value in named)
    assert not parsed.all("link")
    for code in parsed.contents["style"] + parsed.contents["script"][1:]:
        assert not re.search(
            r"@import|url\(|import\(|fetch\(|XMLHttpRequest|//[a-z]", code.replace("http://www.w3.org/2000/svg", "")
        )


def test_policy_lets_only_our_script_run(parsed: Parsed) -> None:
    (policy,) = [meta["content"] for meta in parsed.all("meta") if "http-equiv" in meta]
    script = parsed.contents["script"][-1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; media-src data:;")
    assert f"script-src 'sha256-{digest}';" in policy
    assert not any(name.startswith("on") for _, attributes in parsed.elements for name in attributes)


def test_names_of_the_page_meet(parsed: Parsed) -> None:
    ids = [attributes["id"] for _, attributes in parsed.elements if "id" in attributes]
    assert len(ids) == len({*ids})
    assert {link["href"].removeprefix("#") for link in parsed.all("a")} <= {*ids}
    assert {label["for"] for label in parsed.all("label")} == {select["id"] for select in parsed.all("select")}
    for drawing in parsed.all("svg") + parsed.all("audio"):
        assert drawing["aria-label"]


def test_sounds_are_the_clips(parsed: Parsed, page: tuple) -> None:
    index = page[1].index
    row_of = {key: row for row, key in enumerate(index.column("key").to_pylist())}
    sounds = parsed.all("audio")
    assert len(sounds) > 20
    for sound in sounds:
        wave, rate_hz = audio.decode(base64.b64decode(sound["src"].split(",")[1]))
        clip = index.read_clip(row_of[sound["aria-label"]])
        assert (rate_hz, len(wave)) == (16000, len(clip))
        assert float(sound["data-seconds"]) == pytest.approx(len(clip) / 16000, abs=1e-3)
        assert np.corrcoef(wave, clip)[0, 1] > 0.97


def test_numbers_of_the_results_are_shown(parsed: Parsed, page: tuple) -> None:
    results = page[2]
    model = results["model"]
    for of_set in model["retrieval"].values():
        for scores in of_set.values():
            low, high = scores["intervals"]["R@1"]
            shown = f"{100 * scores['R@1']:.1f} {100 * low:.1f}–{100 * high:.1f} {100 * scores['R@5']:.1f}"
            assert shown in parsed.text
    for kind in ("untrained", "chance"):
        scores = results[kind]["retrieval"]["combined"]["text_to_audio"]
        assert f"{kind} {100 * scores['R@1']:.1f} {100 * scores['R@5']:.1f} {100 * scores['R@10']:.1f}" in parsed.text
    for attribute, scores in model["classification"].items():
        assert f"{attribute} UAR {100 * scores['UAR']:.1f}" in parsed.text
        for tag, of_tag in scores["tags"].items():
            assert f"{tag} {100 * of_tag['recall']:.0f}" in parsed.text
    together = model["composition"]["2"]["audio_to_text"]
    assert f"2 {together['candidates']:.0f} {100 * together['R@1']:.1f}" in parsed.text


def test_same_arguments_same_bytes(page: tuple, embedders: tuple, tmp_path: Path) -> None:
    write_page(tmp_path / "again.html", page[1], *embedders)
    assert (tmp_path / "again.html").read_bytes() == page[0].read_bytes()


def test_texts_are_escaped(mini_corpus: Corpus, embedders: tuple, tmp_path: Path) -> None:
    shards = altered_shards(
        tmp_path / "shards", mini_corpus[1], lambda number, clip: with_text(clip, HOSTILE[number % len(HOSTILE)])
    )
    write_page(tmp_path / "page.html", sets_of(shards, ["intrinsic"]), embedders[0])
    found = Parsed((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(found.all("script")) == 2
    assert not found.all("img")
    assert len(found.all("svg")) == 2  # the curve and the map
    for text in HOSTILE:
        assert " ".join(text.split()) in found.text
    assert "a <model> & more" in found.text
    assert json.loads(found.contents["script"][0])["keys"]


def test_page_of_long_clips_stays_small(mini_corpus: Corpus, embedders: tuple, tmp_path: Path) -> None:
    shards = altered_shards(
        tmp_path / "shards", mini_corpus[1][-24:], lambda _, clip: lengthened(clip, tmp_path, MAX_DURATION_S + 2)
    )
    write_page(tmp_path / "page.html", sets_of(shards), embedders[0])
    found = Parsed((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len(found.all("audio")) >= 60
    assert (tmp_path / "page.html").stat().st_size < 8_000_000
    assert "12.0 s, first 10" in found.text
    for sound in found.all("audio"):
        assert len(audio.decode(base64.b64decode(sound["src"].split(",")[1]))[0]) == 160_000


@pytest.mark.parametrize(
    ("caption_sets", "attributes", "missing"),
    [(["situational"], [], "classification"), ([], ["gender"], "retrieval")],
)
def test_parts_that_are_not_scored_are_left_out(
    mini_shards: Path, embedders: tuple, tmp_path: Path, caption_sets: list, attributes: list, missing: str
) -> None:
    write_page(tmp_path / "page.html", sets_of(mini_shards, caption_sets, attributes), embedders[0])
    found = Parsed((tmp_path / "page.html").read_text(encoding="utf-8"))
    ids = {attributes.get("id") for _, attributes in found.elements}
    assert missing not in ids
    assert {"map", "retrieval" if caption_sets else "classification"} <= ids
    assert {link["href"].removeprefix("#") for link in found.all("a")} <= ids
    assert "untrained" not in found.text.lower()


def test_fewer_clips_than_a_list_is_long(mini_corpus: Corpus, embedders: tuple, tmp_path: Path) -> None:
    tested = [utterance for utterance in mini_corpus[1] if utterance.split == "test"]
    shards = altered_shards(tmp_path / "shards", tested[:2], lambda _, clip: clip)
    write_page(tmp_path / "page.html", sets_of(shards, ["combined"], []), embedders[0])
    found = Parsed((tmp_path / "page.html").read_text(encoding="utf-8"))
    assert len({sound["aria-label"] for sound in found.all("audio")}) == 2
    assert len(json.loads(found.contents["script"][0])["points"]) == 2


def test_embeddings_that_are_not_finite(mini_shards: Path, embedders: tuple, tmp_path: Path) -> None:
    test_sets = sets_of(mini_shards, ["combined"], [])
    embedded = test_sets.embed(embedders[0])
    results = {"model": test_sets.score(embedded).results, "chance": test_sets.chance()}
    speech = embedded.speech.copy()
    speech[3, 0] = np.nan
    with pytest.raises(PsclapError, match="finite"):
        write_html(tmp_path / "page.html", "a model", test_sets, replace(embedded, speech=speech), results)
    assert not list(tmp_path.iterdir())


def retrieval_set(is_right: np.ndarray) -> RetrievalSet:
    return RetrievalSet(
        np.arange(len(is_right)),
        [f"caption {n}" for n in range(is_right.shape[1])],
        Pairs.of(*np.nonzero(is_right), *is_right.shape),
    )


def test_best_and_worst_by_rank_then_margin() -> None:
    scores = np.array([[0.9, 0.1, 0.0], [0.5, 0.4, 0.0], [0.2, 0.6, 0.3], [0.2, 0.7, 0.3], [0.1, 0.2, 0.8]])
    right = np.array([[1, 0, 0], [1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 1, 1]], bool)
    side = sides(retrieval_set(right), *of_cosines(scores / 2))["audio_to_text"]
    best, worst = best_and_worst(side, 2)
    assert best == [0, 4]  # both of rank 1; so is clip 1, but it finds the caption of clip 0
    assert worst == [2, 3]  # of ranks 3 and 2
    assert [(found.number, found.is_right) for found in find(side, 2, 2)] == [(1, False), (2, False)]
    assert best_right(side, 2).number == 0
    assert best_right(side, 2).score == pytest.approx(0.1)


def of_cosines(scores_NM: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """L2-normalised embeddings of N clips and M captions with these cosines; the captions are at right angles."""
    rest_N1 = np.sqrt(1 - (scores_NM**2).sum(1, keepdims=True))
    return np.concatenate([scores_NM, rest_N1], axis=1), np.eye(scores_NM.shape[1], scores_NM.shape[1] + 1)


def test_rank_curve_against_sorting() -> None:
    rng = np.random.default_rng(0)
    speech, text = of_cosines(rng.uniform(0, 0.1, (60, 30)))
    right = np.eye(30, dtype=bool)[np.arange(60) % 30]
    drawing = rank_curve(sides(retrieval_set(right), speech, text))
    ranks = np.take_along_axis(right, np.argsort(-speech @ text.T, axis=1), axis=1).argmax(1) + 1
    assert f"speech to caption: {said(ranks, 30)}." in drawing.words
    of_text = np.take_along_axis(right.T, np.argsort(-text @ speech.T, axis=1), axis=1).argmax(1) + 1
    assert f"caption to speech: {said(of_text, 60)}." in drawing.words


def said(ranks: np.ndarray, num_candidates: int) -> str:
    cutoffs = [k for k in (1, 2, 5, 10, 20, 50, 100) if k <= num_candidates]
    return ", ".join(f"{100 * (ranks <= k).mean():.0f} % at {k}" for k in cutoffs)


def test_rank_curve_of_a_constant_model_is_chance() -> None:
    right = np.eye(30, dtype=bool)[np.arange(60) % 30]
    drawing = rank_curve(sides(retrieval_set(right), np.ones((60, 4)) / 2, np.ones((30, 4)) / 2))
    by_line = {(line.direction, line.kind): line.points for line in drawing.lines}
    assert len(by_line) == 4
    for direction in ("audio_to_text", "text_to_audio"):
        assert by_line[direction, "model"] == by_line[direction, "chance"]


@pytest.mark.parametrize("num_clips", [1, 2, 5, 48])
@pytest.mark.parametrize("num_voices", [1, 2, 48])
def test_map_of_any_clips(mini_shards: Path, num_clips: int, num_voices: int) -> None:
    """Clips of few voices have equal embeddings; of one voice, as a model has that has collapsed."""
    index = ShardIndex(mini_shards)
    rows = index.rows_of("test")[:num_clips]
    speech = np.random.default_rng(0).normal(size=(num_voices, 16)).astype(np.float32)
    speech = (speech / np.linalg.norm(speech, axis=1, keepdims=True))[np.arange(num_clips) % num_voices]
    made = clip_map(index, rows, speech, tuple(ATTRIBUTES))
    points = np.array(made["points"])
    assert points.shape == (num_clips, 2)
    assert points.min() >= 0
    assert points.max() <= 1000
    assert made["height"] == points[:, 1].max()
    for attribute in made["attributes"]:
        for key, number in zip(made["keys"], attribute["numbers"], strict=True):
            tags = index.row(int(rows[made["keys"].index(key)]))
            carried = {*ATTRIBUTES[attribute["name"]]} & {*tags["intrinsic_tags"], *tags["situational_tags"]}
            assert carried == {attribute["tags"][number]} if number >= 0 else len(carried) != 1


def test_map_keeps_neighbours(mini_shards: Path) -> None:
    """Clips of one of two far clusters are next to each other on the map."""
    rows = ShardIndex(mini_shards).rows_of("test")
    centre = np.eye(2, 16)[np.arange(len(rows)) % 2]
    speech = centre + 0.05 * np.random.default_rng(1).normal(size=(len(rows), 16))
    speech /= np.linalg.norm(speech, axis=1, keepdims=True)
    points = np.array(clip_map(ShardIndex(mini_shards), rows, speech.astype(np.float32), [])["points"])
    distances = np.linalg.norm(points[:, None] - points[None], axis=2) + np.diag(np.full(len(rows), np.inf))
    assert (distances.argmin(1) % 2 == np.arange(len(rows)) % 2).all()


def test_mp3_clips_what_is_too_loud() -> None:
    wave = np.sin(np.arange(16000) / 20).astype(np.float32)
    assert encode_mp3(3 * wave) == encode_mp3(np.clip(3 * wave, -1, 1))
    assert len(encode_mp3(wave)) < 6000


def test_templates_are_installed_with_the_package() -> None:
    patterns = read_configuration(ROOT / "pyproject.toml")["tool"]["setuptools"]["package-data"]["psclap"]
    installed = {path for pattern in patterns for path in (ROOT / "psclap").glob(pattern)}
    assert {*(ROOT / "psclap/report/templates").iterdir()} <= installed
