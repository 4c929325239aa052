"""benchmarks/real_voices.py and benchmarks/contrastive_step.py, on a corpus of espeak-ng and with a step or two."""

import csv
from dataclasses import replace
from pathlib import Path

import pytest
from small_speech import SIZES

from psclap.config import load_params
from psclap.corpora.demo_tts import DemoTts
from psclap.data_config import CorpusConfig
from psclap.errors import PsclapError
from psclap.shards.index import ShardIndex

ROOT = Path(__file__).parent.parent


@pytest.fixture(autouse=True)
def benchmarks_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


@pytest.fixture(scope="module")
def manifest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty-two recordings of one speaker, as a manifest of real speech lists them."""
    folder = tmp_path_factory.mktemp("recordings")
    corpus = DemoTts(speakers=1, train_clips=30, val_clips=1, test_clips=1)
    with open(folder / "manifest.csv", "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        writer.writerow(["path", "split", "corpus", "speaker", "language", "transcript"])
        for clip in corpus.utterances(folder, processes=1):
            writer.writerow([clip.audio, "whatever", "espeak", "one", clip.language, clip.transcript])
    return folder / "manifest.csv"


def test_a_voice_is_trained_and_evaluated_and_so_is_the_contrast(
    manifest: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import contrastive_step
    import real_voices
    import tts_texts

    sizes = ["--hidden-size", "16", "--num-blocks", "1", "--conv-size", "24"]
    steps = ["--speech-clip-steps", "1", "--clip-tts-steps", "2", "--held-out", "2"]
    command = ["--manifest", str(manifest), "--speaker", "one", "--output", str(tmp_path / "voice"), *sizes, *steps]
    real_voices.run(real_voices.parse(command))
    told = capsys.readouterr().out
    assert "train: 28 clips" in told
    assert "| copy_synthesis |" in told
    assert "| mel_to_text" in told
    assert "symbols of one frame" in told
    voice = tmp_path / "voice"
    assert (voice / "reports" / "clip_tts" / "report.html").exists()
    lines = tts_texts.measure(ShardIndex(voice / "shards"), 100, tmp_path)
    assert [name for name, _ in lines][2:] == [
        "start with 100 clips, each said",
        "start with 100 clips, by the index",
    ]
    assert [*ShardIndex(tmp_path).num_phonemes[:2]] == [*ShardIndex(tmp_path).num_phonemes[28:30]] != [0, 0]
    assert len([*(voice / "waves").glob("*-recorded.flac")]) == len([*(voice / "waves").glob("*-said.flac")]) > 0

    configured = load_params(ROOT / "params.yaml").voices["cast"]
    small = replace(
        configured,
        corpus=CorpusConfig("manifest", {"path": str(manifest)}),
        model=SIZES,
        speech_clip=replace(configured.speech_clip, global_batch_size=8),
        clip_tts=replace(configured.clip_tts, global_batch_size=8),
    )
    trial = contrastive_step.Trial(contrastive_step.short(small, 1, 2), voice / "shards", tmp_path / "trial")
    arms = [*trial.arms(seed=1)]
    rows = {row[0]: row for row in contrastive_step.arm_rows(arms)}
    assert rows.keys() == {"contrast", "no contrast", "from scratch"}
    assert rows["contrast"][3:] != rows["no contrast"][3:]  # the contrast reached Clip-TTS
    assert [row[0] for row in contrastive_step.difference_rows(arms)] == [
        "contrast - no contrast",
        "contrast - from scratch",
    ]


def test_a_speaker_with_too_few_clips_is_refused(manifest: Path) -> None:
    import real_voices

    assert len(real_voices.speaker_utterances(manifest, "one", 2)) == 32
    with pytest.raises(PsclapError, match="0 clips of the speaker 'two'"):
        real_voices.speaker_utterances(manifest, "two", 2)
