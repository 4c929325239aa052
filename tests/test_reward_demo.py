"""Best-of-N shown on the demo's voices: what is asked, rendered, ranked and judged; attribute recall by hand."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import yaml
from small_model import save_small_model

from psclap.config import PRESETS_FOLDER, RewardConfig
from psclap.corpora.demo import STYLES, Demo, Line
from psclap.corpora.demo_text import SENTENCES
from psclap.embedding import Embedder
from psclap.errors import PsclapError
from psclap.evaluation.reward.demonstration import CalibratedJudge, demonstrate
from psclap.evaluation.reward.judge import AcousticJudge, listen
from psclap.evaluation.reward.prompts import Candidate, Prompt
from psclap.evaluation.reward.rank import Ranked, Scored
from psclap.evaluation.reward.recall import attribute_recall
from psclap.evaluation.reward.report import headline, write_recall
from psclap.evaluation.reward.styles import StyledPrompt, plan, render
from psclap.tags import SYNONYMS


def test_prompts_ask_for_what_can_be_heard_together() -> None:
    prompts = plan(60, 4, 0.5, seed=1)
    assert len({prompt.id for prompt in prompts}) == 60
    for number, prompt in enumerate(prompts):
        assert 2 <= len(prompt.asked) <= 4
        assert all(tag in STYLES[name] for name, tag in prompt.asked.items())
        assert ("phonation" in prompt.asked) == (number % 4 == 3)
        if "phonation" in prompt.asked:
            assert set(prompt.asked) <= {"phonation", "rate", "volume"}
        else:
            assert {line.style["phonation"] for line in prompt.lines} == {"enunciated"}
        for name, tag in prompt.asked.items():
            assert name == "gender" or any(word in prompt.text for word in SYNONYMS[tag])
        assert {line.text for line in prompt.lines} <= set(SENTENCES["test"])
    assert {name for prompt in prompts for name in prompt.asked} == set(STYLES)


def test_candidates_follow_with_the_stated_probability() -> None:
    """Of K values, an asked attribute is right with p + (1 - p) / K."""
    for probability in (0.0, 0.5, 1.0):
        prompts = plan(300, 16, probability, seed=2)
        for name, values in STYLES.items():
            right = [line.style[name] == p.asked[name] for p in prompts if name in p.asked for line in p.lines]
            assert np.mean(right) == pytest.approx(probability + (1 - probability) / len(values), abs=0.05)


def test_more_prompts_and_candidates_begin_with_the_same_ones() -> None:
    few, many = plan(3, 2, 0.5, seed=3), plan(5, 4, 0.5, seed=3)
    for one, other in zip(few, many, strict=False):
        assert (one.text, one.asked, one.lines) == (other.text, other.asked, other.lines[:2])
    assert plan(3, 2, 0.5, seed=4) != few


def styled(asked: dict[str, str], styles: list[dict[str, str]]) -> StyledPrompt:
    return StyledPrompt("p", "text", asked, tuple(Line("a", style) for style in styles))


def ranked(scores: list[float | None]) -> Ranked:
    candidates = tuple(Scored(Candidate("", ""), score, None, score, (), None) for score in scores)
    return Ranked(Prompt("p", "text", ()), candidates, 0, None)


def test_recall_by_hand() -> None:
    prompts = [
        styled(
            {"rate": "slow", "volume": "loud"}, [{"rate": "slow", "volume": "soft"}, {"rate": "slow", "volume": "loud"}]
        ),
        styled({"gender": "male"}, [{"gender": "male"}, {"gender": "female"}]),
    ]
    heard = [[{"rate": "slow", "volume": "soft"}, {"rate": "fast", "volume": "loud"}], [{}, {"gender": "male"}]]
    order = [ranked([0.1, 0.2]), ranked([0.9, 0.3])]
    found = attribute_recall(prompts, order, heard, {"rate": 0.9, "volume": 0.95, "gender": 0.79})
    assert found["judge"]["left_out"] == ["gender"]
    at_2 = {kind: estimate["mean"] for kind, estimate in found["recall"][2].items()}
    assert at_2 == {"random": 0.5, "selected": 0.5, "oracle": 0.5, "gain": 0.0}
    assert found["all_right"][2]["oracle"]["mean"] == 0
    assert found["attributes"]["rate"]["selected"]["mean"] == 0
    assert found["attributes"]["rate"]["random"]["mean"] == 0.5
    assert found["attributes"]["volume"]["gain"]["mean"] == 0.5
    assert found["attributes"]["volume"]["prompts"] == 1
    as_set = {kind: estimate["mean"] for kind, estimate in found["as_set"]["recall"][2].items()}
    assert as_set == {"random": pytest.approx(0.625), "selected": 1.0, "oracle": 1.0, "gain": pytest.approx(0.375)}
    with pytest.raises(PsclapError, match="none of the asked attributes well enough"):
        attribute_recall(prompts, order, heard, {"rate": 0.5})


def test_candidates_are_rendered_as_they_were_set(tmp_path: Path) -> None:
    prompts = plan(2, 3, 0.5, seed=5)
    found = list(render(Demo(), prompts, tmp_path, processes=2))
    assert [(prompt.id, prompt.text) for prompt in found] == [(prompt.id, prompt.text) for prompt in prompts]
    alone = next(Demo().say([prompts[1].lines[2]], processes=1))
    wave, rate_hz = soundfile.read(found[1].candidates[2].audio, dtype="float32")
    assert rate_hz == 22050
    assert np.array_equal(wave, alone)


@pytest.fixture(scope="module")
def judge() -> CalibratedJudge:
    lines = [line for prompt in plan(40, 2, 0.0, seed=6) for line in prompt.lines]
    heard = [listen(wave, 22050, line.text) for wave, line in zip(Demo().say(lines), lines, strict=True)]
    fitted = AcousticJudge.calibrate(heard, [list(line.style.values()) for line in lines])
    return CalibratedJudge(fitted, dict.fromkeys(STYLES, 0.9))


@pytest.mark.soak  # test_pipeline.py has it once
def test_the_demonstration_is_the_same_twice(judge: CalibratedJudge, tmp_path: Path) -> None:
    embedder = Embedder(save_small_model(tmp_path / "model"))
    config = RewardConfig(("combined",), prompts=4, candidates=4, follow_probability=0.5, calibration_clips=24)
    folders = [tmp_path / "one", tmp_path / "two"]
    for folder in folders:
        result = demonstrate(Demo(), embedder, judge, config, 7, folder / "selection", {"name": "small"})
        write_recall(folder, "small", result, "4 candidates each")
    for path in sorted(folders[0].rglob("*")):
        assert path.is_dir() or path.read_bytes() == (folders[1] / path.relative_to(folders[0])).read_bytes(), path
    assert list(result["recall"]) == [1, 2, 4]
    numbers = headline(result)
    assert 0 <= numbers["recall@4"]["random"] <= numbers["recall@4"]["oracle"] <= 1
    records = [json.loads(line) for line in (folders[0] / "selection/selection.jsonl").read_text().splitlines()]
    assert all((folders[0] / "selection" / record["audio"]).is_file() for record in records)
    assert not any("/tmp" in candidate["audio"] for record in records for candidate in record["candidates"])
    rows = list(csv.DictReader((folders[0] / "best_of_n.csv").open()))
    assert [(row["measure"], row["N"]) for row in rows[:3]] == [("recall", "1"), ("recall", "2"), ("recall", "4")]
    assert float(rows[2]["selected_mean"]) == pytest.approx(numbers["recall@4"]["selected"], abs=1e-4)
    assert "| 4 " in (folders[0] / "table.md").read_text()


def test_the_stage_refuses_another_corpus(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the paper's corpus there is no such stage; who asks for one is told so."""
    from stages import _main, reward

    mapping = yaml.safe_load((PRESETS_FOLDER / "paper.yaml").read_text())
    assert mapping["reward"]["variants"] == []
    mapping["reward"]["variants"] = ["combined"]
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(mapping))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["reward", "combined"])
    with pytest.raises(SystemExit, match="1"):
        _main.run_stage(reward.main)
    assert "best-of-N is shown on the voices of the corpus 'demo'" in capsys.readouterr().err
