"""`psclap rank`: both layouts of the input, the reward, gates, what is written; on a small model and real files."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import psclap
from small_model import TEXTS, noise, save_small_model, wav

from psclap.embedding import Embedder
from psclap.errors import PsclapError
from psclap.evaluation.reward.criteria import Gate, Reward, parse_addend
from psclap.evaluation.reward.prompts import Candidate, Prompt, read_prompts
from psclap.evaluation.reward.rank import rank
from psclap.evaluation.reward.selection import write_selection

MODEL = {"name": "small", "weights_sha256": "0"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_small_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def embedder(model: Path) -> Embedder:
    return Embedder(model)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sounds that differ: noises of several levels and lengths, tones."""
    folder = tmp_path_factory.mktemp("clips")
    for number in range(12):
        wave = noise(0.4 + 0.1 * number, seed=number) * 10 ** (-number / 6)
        tone = np.sin(2 * np.pi * 100 * (number + 1) * np.arange(len(wave)) / 16000)
        (folder / f"{number}.wav").write_bytes(wav((wave + 0.1 * tone).astype(np.float32)))
    (folder / "broken.wav").write_bytes(b"RIFF no sound at all")
    (folder / "huge.wav").write_bytes(wav(1e30 * noise(0.5)))  # its square is infinite
    (folder / "short.wav").write_bytes(wav(noise(0.001)))
    return folder


def lines(path: Path, prompts: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(prompt) + "\n" for prompt in prompts), encoding="utf-8")
    return path


def prompt(clips: Path, candidates: list[Any], text: str | None = TEXTS[0], **keys: Any) -> Prompt:
    """A prompt of clips by number or name, or (clip, columns)."""
    pairs = [candidate if isinstance(candidate, tuple) else (candidate, {}) for candidate in candidates]
    listed = tuple(Candidate(str(clips / f"{name}.wav"), f"{name}.wav", columns) for name, columns in pairs)
    return Prompt(keys.pop("id", "p"), text, listed, **keys)


def test_selection_is_that_of_a_slow_plain_computation(embedder: Embedder, clips: Path) -> None:
    rng = np.random.default_rng(0)
    prompts = [
        prompt(clips, rng.permutation(12)[: 3 + number].tolist(), TEXTS[number % 2], id=str(number))
        for number in range(6)
    ]
    for found, asked in zip(rank(embedder, prompts), prompts, strict=True):
        (text,) = embedder.embed_text([asked.text])
        cosines = [float(embedder.embed_files([candidate.audio])[0] @ text) for candidate in asked.candidates]
        assert [scored.score for scored in found.candidates] == pytest.approx(cosines, abs=2e-6)
        assert found.chosen == int(np.argmax(cosines))
        assert found.within_gates


def test_text_and_reference_are_weighed(embedder: Embedder, clips: Path) -> None:
    asked = prompt(clips, [0, 3, 7, 9], reference=str(clips / "5.wav"))
    (found,) = rank(embedder, [asked], Reward(text_weight=0.25, reference_weight=2.0))
    text, reference = embedder.embed_text(TEXTS[:1])[0], embedder.embed_files([clips / "5.wav"])[0]
    speech = embedder.embed_files([candidate.audio for candidate in asked.candidates])
    assert [c.text_cosine for c in found.candidates] == pytest.approx((speech @ text).tolist(), abs=2e-6)
    assert [c.reference_cosine for c in found.candidates] == pytest.approx((speech @ reference).tolist(), abs=2e-6)
    expected = 0.25 * speech @ text + 2 * speech @ reference
    assert [c.score for c in found.candidates] == pytest.approx(expected.tolist(), abs=5e-6)
    assert found.chosen == int(expected.argmax())


def test_a_clip_is_the_most_like_itself(embedder: Embedder, clips: Path) -> None:
    asked = prompt(clips, [0, 3, 5, 9], text=None, reference=str(clips / "5.wav"))
    (found,) = rank(embedder, [asked])
    assert found.chosen == 2
    assert found.candidates[2].reference_cosine == pytest.approx(1, abs=1e-5)
    assert found.candidates[2].text_cosine is None


def test_a_gate_is_stronger_than_the_score(embedder: Embedder, clips: Path) -> None:
    (free,) = rank(embedder, [prompt(clips, [0, 3, 7])])
    assert free.chosen is not None
    wer = {**dict.fromkeys(range(3), 0.05), free.chosen: 0.5}
    asked = prompt(clips, [(name, {"wer": wer[place]}) for place, name in enumerate([0, 3, 7])])
    (found,) = rank(embedder, [asked], Reward(gates=(Gate.parse("wer <= 0.1"),)))
    others = [number for number in range(3) if number != free.chosen]
    assert found.chosen == max(others, key=lambda number: found.candidates[number].score or -9)
    assert found.candidates[free.chosen].broken_gates == ("wer<=0.1",)
    assert found.within_gates


def test_where_no_candidate_is_within_all_gates_the_fewest_broken_win(embedder: Embedder, clips: Path) -> None:
    columns = [{"wer": 0.9, "snr": 1}, {"wer": 0.9, "snr": 30}, {"wer": None, "snr": 30}, {"snr": 2}]
    asked = prompt(clips, list(zip([0, 3, 7, 9], columns, strict=True)))
    (found,) = rank(embedder, [asked], Reward(gates=(Gate.parse("wer<0.1"), Gate.parse("snr>=20"))))
    assert [len(candidate.broken_gates) for candidate in found.candidates] == [2, 1, 1, 2]
    assert found.chosen == max((1, 2), key=lambda number: found.candidates[number].score or -9)
    assert not found.within_gates


def test_columns_are_added(embedder: Embedder, clips: Path) -> None:
    asked = prompt(clips, [(0, {"wer": 0.1}), (3, {"wer": 40}), (7, {"wer": None})])
    (found,) = rank(embedder, [asked], Reward(add={"wer": -0.5}))
    first, second, third = found.candidates
    assert first.score == pytest.approx((first.text_cosine or 0) - 0.05, abs=2e-6)
    assert second.score == pytest.approx((second.text_cosine or 0) - 20, abs=2e-6)
    assert third.score is None
    assert third.reject == "no value: of wer"
    assert found.chosen == 0


def test_of_equal_candidates_the_first_wins(embedder: Embedder, clips: Path, tmp_path: Path) -> None:
    names = ["9", "3", "3-again", "3-once-more"]
    for name in names:
        shutil.copy(clips / f"{name[0]}.wav", tmp_path / f"{name}.wav")
    for order in (names, names[::-1]):
        (found,) = rank(embedder, [prompt(tmp_path, order, text=None, reference=str(clips / "3.wav"))])
        assert order[found.chosen or 0] == next(name for name in order if name[0] == "3")


def test_what_cannot_be_decoded_is_a_reject(embedder: Embedder, clips: Path) -> None:
    prompts = [
        prompt(clips, ["broken", 3, "absent", "short"], id="a"),
        prompt(clips, ["broken", "absent"], id="b"),
        prompt(clips, [3, 4], id="c", reference=str(clips / "broken.wav")),
    ]
    first, second, third = rank(embedder, prompts)
    assert first.chosen == 1
    reasons = [(c.reject or "").partition(":")[0] for c in first.candidates]
    assert reasons == ["unreadable", "", "missing", "duration"]
    assert second.chosen is None
    assert second.reason == "none of its 2 candidates can be used"
    assert third.chosen is None
    assert (third.reason or "").startswith("its reference: unreadable")


def test_what_the_model_makes_nan_of_is_a_reject(embedder: Embedder, clips: Path) -> None:
    prompts = [prompt(clips, ["huge", 3, 4], id="a"), prompt(clips, [3], id="b", reference=str(clips / "huge.wav"))]
    first, second = rank(embedder, prompts)
    (alone,) = rank(embedder, [prompt(clips, [3, 4], id="a")])
    assert first.candidates[0].reject == "no embedding: the model makes NaN or infinity of it"
    assert [c.score for c in first.candidates[1:]] == pytest.approx([c.score for c in alone.candidates], abs=2e-6)
    assert first.chosen == (alone.chosen or 0) + 1
    assert second.chosen is None
    assert second.reason == "its reference: no embedding: the model makes NaN or infinity of it"


def test_a_model_that_makes_nan_of_texts_ends_the_ranking(model: Path, clips: Path) -> None:
    diverged = Embedder(model)
    for weights in diverged.model.parameters():
        weights.data.fill_(float("nan"))
    with pytest.raises(PsclapError, match="diverged"):
        next(rank(diverged, [prompt(clips, [3, 4])]))


def test_each_text_and_clip_is_embedded_once(embedder: Embedder, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[int] = []
    read: list[str] = []
    embed_audio, embed_text = embedder.embed_audio, embedder.embed_text

    def counted_audio(waves):  # type: ignore[no-untyped-def]
        found = embed_audio(waves)
        heard.append(len(found))
        return found

    def counted_text(texts):  # type: ignore[no-untyped-def]
        read.extend(texts)
        return embed_text(texts)

    monkeypatch.setattr(embedder, "embed_audio", counted_audio)
    monkeypatch.setattr(embedder, "embed_text", counted_text)
    prompts = [prompt(clips, [0, 1, 2], id=str(n), reference=str(clips / "5.wav")) for n in range(4)]
    list(rank(embedder, prompts))
    assert sum(heard) == 1 + 3
    assert read == [TEXTS[0]]


def test_blocks_change_nothing(embedder: Embedder, clips: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = [prompt(clips, [n, n + 1, n + 2], TEXTS[n % 2], id=str(n)) for n in range(9)]
    whole = list(rank(embedder, prompts))
    monkeypatch.setattr("psclap.evaluation.reward.rank._BLOCK_CANDIDATES", 4)
    assert list(rank(embedder, prompts)) == whole


@pytest.mark.parametrize(
    ("reward", "message"),
    [
        (Reward(text_weight=0), "nothing to be ranked by"),
        (Reward(gates=(Gate.parse("were<=1"),)), "no candidate has a column 'were'; their columns: wer, name"),
        (Reward(add={"name": 1.0}), "name 'x' must be a finite number, or null"),
    ],
)
def test_the_door_of_rank(embedder: Embedder, clips: Path, reward: Reward, message: str) -> None:
    with pytest.raises(PsclapError, match=message):
        rank(embedder, [prompt(clips, [(0, {"wer": 1, "name": "x"})])], reward)


@pytest.mark.parametrize("text", ["wer", "wer=0.1", "<=1", "wer<=", "wer<=x", "wer<=nan", "0<wer<1", ""])
def test_a_gate_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(PsclapError, match=r"such as wer<=0\.1"):
        Gate.parse(text)


@pytest.mark.parametrize("text", ["wer", ":1", "wer:", "wer:x", "wer:inf"])
def test_an_addend_of_another_form_is_refused(text: str) -> None:
    with pytest.raises(PsclapError, match=r"such as wer:-0\.5"):
        parse_addend(text)


def test_weights_are_finite() -> None:
    with pytest.raises(PsclapError, match="the weight nan of text_weight"):
        Reward(text_weight=float("nan"))


def test_json_lines_are_read(tmp_path: Path) -> None:
    asked = [
        {"prompt": "tiefe Stimme, größer \u2028 声", "candidates": ["a.wav", {"audio": "/b.wav", "wer": 0.5}]},
        {"id": 7, "candidates": ["s3://bucket/a.wav"], "reference": "r.wav"},
    ]
    path = lines(tmp_path / "prompts.jsonl", asked)
    path.write_text("\ufeff" + path.read_text().replace("0.5", "NaN") + "\n\n", encoding="utf-8")
    first, second = read_prompts(path)
    assert (first.id, first.text, first.reference) == ("0", asked[0]["prompt"], None)
    assert [candidate.audio for candidate in first.candidates] == [str(tmp_path / "a.wav"), "/b.wav"]
    assert first.candidates[1].columns == {"wer": None}
    assert (second.id, second.text, second.reference) == ("7", None, str(tmp_path / "r.wav"))
    assert second.candidates[0].audio == "s3://bucket/a.wav"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", ":1 is not JSON"),
        ("[]", "must be an object"),
        ('{"prompt": "a", "candidate": ["a.wav"]}', "unknown keys \\['candidate'\\]"),
        ('{"candidates": ["a.wav"]}', "needs a `prompt`"),
        ('{"prompt": " ", "candidates": ["a.wav"]}', "not empty"),
        ('{"prompt": "\\ud800", "candidates": ["a.wav"]}', "no Unicode text"),
        ('{"prompt": "a", "candidates": []}', "one or more paths"),
        ('{"prompt": "a", "candidates": "a.wav"}', "must be a list"),
        ('{"prompt": "a", "candidates": [{"wer": 1}]}', "candidates\\[0\\]"),
        ('{"prompt": "a", "candidates": ["a.wav"], "id": 1.5}', "id 1.5"),
        ('{"id": "1", "prompt": "a", "candidates": ["a.wav"]}\n' * 2, "the id '1' is given twice"),
        ("", "holds no prompts"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "prompts.jsonl").write_text(line)
    with pytest.raises(PsclapError, match=message):
        read_prompts(tmp_path / "prompts.jsonl")


def published(folder: Path, clips: Path, iterations: int, first: int = 0) -> Path:
    """The published layout: two prompts, `iterations` candidates each."""
    for iteration in range(1, iterations + 1):
        audios = folder / f"iter_{iteration}" / "audios"
        audios.mkdir(parents=True)
        for number in range(2):
            shutil.copy(clips / f"{(iteration + 5 * number) % 12}.wav", audios / f"{number + first}.wav")
    (folder / "iter_1" / "input_descriptions.txt").write_text("\n".join(TEXTS) + "\n")
    return folder


@pytest.mark.parametrize("first", [0, 1])
def test_the_published_layout_is_read_in_the_order_of_its_numbers(tmp_path: Path, clips: Path, first: int) -> None:
    prompts = read_prompts(published(tmp_path, clips, 11, first))
    assert [(asked.id, asked.text) for asked in prompts] == list(zip([str(first), str(first + 1)], TEXTS, strict=True))
    for number, asked in enumerate(prompts, first):
        assert [c.name for c in asked.candidates] == [f"iter_{n}/audios/{number}.wav" for n in range(1, 12)]


def test_the_published_layout_gives_what_json_lines_give(embedder: Embedder, clips: Path, tmp_path: Path) -> None:
    folder = published(tmp_path / "published", clips, 3)
    asked = [
        {"prompt": text, "candidates": [f"published/iter_{n}/audios/{number}.wav" for n in (1, 2, 3)]}
        for number, text in enumerate(TEXTS)
    ]
    by_lines = rank(embedder, read_prompts(lines(tmp_path / "prompts.jsonl", asked)))
    for one, other in zip(rank(embedder, read_prompts(folder)), by_lines, strict=True):
        assert one.chosen == other.chosen
        assert [c.score for c in one.candidates] == [c.score for c in other.candidates]


def test_a_missing_candidate_keeps_its_place(embedder: Embedder, clips: Path, tmp_path: Path) -> None:
    published(tmp_path, clips, 3)
    (tmp_path / "iter_2/audios/1.wav").unlink()
    shutil.rmtree(tmp_path / "iter_3/audios")
    first, second = rank(embedder, read_prompts(tmp_path))
    assert [bool(c.reject) for c in first.candidates] == [False, False, True]
    assert [bool(c.reject) for c in second.candidates] == [False, True, True]
    assert second.candidates[1].reject == "missing: there is no such file; check its path"
    assert second.candidates[1].candidate.name == "iter_2/audios/1.wav"


def test_folders_that_do_not_fit_are_refused(clips: Path, tmp_path: Path) -> None:
    with pytest.raises(PsclapError, match="the layout is iter_1"):
        read_prompts(tmp_path)
    folder = published(tmp_path / "a", clips, 2)
    descriptions = folder / "iter_1/input_descriptions.txt"
    (folder / "iter_2/input_descriptions.txt").write_text("another\nprompt\n")
    with pytest.raises(PsclapError, match="differs from"):
        read_prompts(folder)
    (folder / "iter_2/input_descriptions.txt").unlink()
    descriptions.write_text("only one\n")
    with pytest.raises(PsclapError, match=r"candidates of prompt 1, and .* has 1 lines"):
        read_prompts(folder)
    descriptions.write_text("one\n\nthree\n")
    with pytest.raises(PsclapError, match=":2 is empty"):
        read_prompts(folder)
    descriptions.write_text("one\ntwo\n")
    for iteration in ("iter_1", "iter_2"):
        (folder / iteration / "audios/0.wav").unlink()
    with pytest.raises(PsclapError, match="no iteration has a candidate 0 or 2"):
        read_prompts(folder)
    (folder / "iter_1/audios/take.wav").write_bytes(b"")
    with pytest.raises(PsclapError, match="not named by its prompt's number"):
        read_prompts(folder)


def test_a_selection_is_written_whole(embedder: Embedder, clips: Path, tmp_path: Path) -> None:
    prompts = [
        prompt(clips, [(0, {"mos": 3.5, "seed": "a"}), (3, {"mos": 2}), ("broken", {"mos": 5})], id="../a/ß 声"),
        prompt(clips, ["absent"], id="lost"),
    ]
    summary = write_selection(tmp_path / "out", rank(embedder, prompts), Reward(), MODEL, judge="mos")
    first, second = [json.loads(line) for line in (tmp_path / "out/selection.jsonl").read_text().splitlines()]
    winner = prompts[0].candidates[first["chosen"]]
    audios = list((tmp_path / "out/audios").iterdir())
    assert [f"audios/{path.name}" for path in audios] == [first["audio"]]
    assert audios[0].read_bytes() == Path(winner.audio).read_bytes()
    assert (first["id"], first["candidates"][0]["columns"]) == ("../a/ß 声", {"mos": 3.5, "seed": "a"})
    assert first["candidates"][2]["reject"].startswith("unreadable: ")
    assert second["chosen"] is second["audio"] is second["within_gates"] is None
    assert json.loads((tmp_path / "out/summary.json").read_text()) == json.loads(json.dumps(summary))
    assert summary["rejected_candidates"] == {"missing": 1, "unreadable": 1}
    assert summary["failed_prompts"] == [{"id": "lost", "reason": "none of its 1 candidates can be used"}]
    assert (summary["prompts"], summary["chosen"], summary["chosen_outside_gates"]) == (2, 1, 0)
    at_2 = summary["best_of_n"]["sizes"][2]
    assert at_2["random"]["mean"] == pytest.approx(2.75)
    assert at_2["selected"]["mean"] == winner.columns["mos"]
    assert at_2["oracle"]["mean"] == 3.5


def test_nothing_is_left_of_a_selection_that_fails(embedder: Embedder, clips: Path, tmp_path: Path) -> None:
    def failing():  # type: ignore[no-untyped-def]
        yield from rank(embedder, [prompt(clips, [0, 3])])
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="disk"):
        write_selection(tmp_path / "out", failing(), Reward(), MODEL)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "out").mkdir()
    (tmp_path / "out/precious.txt").write_text("kept")
    with pytest.raises(PsclapError, match="exists, and nothing is overwritten"):
        write_selection(tmp_path / "out", [], Reward(), MODEL)
    assert (tmp_path / "out/precious.txt").read_text() == "kept"


def test_the_judge_is_not_a_part_of_the_reward(tmp_path: Path) -> None:
    for reward in (Reward(add={"mos": 1.0}), Reward(gates=(Gate.parse("mos>3"),))):
        with pytest.raises(PsclapError, match="'mos' is a part of the reward"):
            write_selection(tmp_path / "out", [], reward, MODEL, judge="mos")


def test_the_command_ranks_and_says_what_it_did(model: Path, clips: Path, tmp_path: Path) -> None:
    asked = [
        {"prompt": TEXTS[0], "candidates": [{"audio": str(clips / f"{n}.wav"), "wer": n / 10} for n in range(4)]},
        {"prompt": "leise, ganz größer", "candidates": [{"audio": "broken.wav", "wer": 0}], "id": "x"},
    ]
    shutil.copy(clips / "broken.wav", tmp_path)
    source = lines(tmp_path / "prompts.jsonl", asked)

    def run(output: str, *options: str) -> subprocess.CompletedProcess[str]:
        return psclap("rank", source, "--output", tmp_path / output, "--model", model, *options)

    first = run("one", "--gate", "wer<=0.1", "--add", "wer:-0.01")
    assert first.returncode == 0, first.stderr
    assert "1 of 2 prompts have a winner" in first.stdout
    assert "rejected candidates: 1 unreadable" in first.stdout
    assert "no winner for x: none of its 1 candidates can be used" in first.stdout
    record = json.loads((tmp_path / "one/selection.jsonl").read_text().splitlines()[0])
    assert record["chosen"] in (0, 1)
    summary = json.loads((tmp_path / "one/summary.json").read_text())
    assert summary["model"]["name"] == str(model)
    assert summary["reward"]["gates"] == ["wer<=0.1"]

    assert run("two", "--gate", "wer<=0.1", "--add", "wer:-0.01").returncode == 0
    for path in sorted((tmp_path / "one").rglob("*")):
        other = tmp_path / "two" / path.relative_to(tmp_path / "one")
        assert path.is_dir() or path.read_bytes() == other.read_bytes()

    judged = run("three", "--judge", "wer")
    assert judged.returncode == 0, judged.stderr
    assert "selected - random" in judged.stdout
    for options, message in (
        (("--gate", "wer<=0.1", "--judge", "wer"), "is a part of the reward"),
        (("--judge", "wre"), "no candidate has a column 'wre'"),
        (("--add", "wer"), "such as wer:-0.5"),
    ):
        refused = run("four", *options)
        assert refused.returncode == 1
        assert message in refused.stderr
        assert not (tmp_path / "four").exists()
