"""With the published options, the objective against the published formulas, written out in numpy in float64.

What is taken from the library: the two encoders' own weights and last layers, one clip and one text at a time, so
that there is no padding. All else is computed anew: features, pooling, projections, losses (arXiv 2603.28737).
"""

import math
import re
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from conftest import WAVLM, XLM_R
from published import Array, normalised, projected, to_numpy

from psclap.config import PRESETS_FOLDER, EncoderConfig, load_params
from psclap.models.build import build_model
from psclap.models.dual_encoder import ParaSpeechCLAPModel
from psclap.training.batch import Batch, Example
from psclap.training.task import ContrastiveTask

TEXT_ENCODER = XLM_R | {"initializer_range": 0.3}  # large, so that texts of different words differ
TAGS = ("husky", "British", "male")
CAPTIONS = ("A husky man.", "A British woman speaks.", "A husky man.", "Somebody from Britain, male.", "Who is it?")
TAGS_OF = (("husky", "male"), ("British",), ("husky", "male"), ("British", "male"), ())
TEMPLATES = ("A person is speaking in a {} style.", "The voice is {}.", "A {} voice.")
WORDS = {"husky": ("husky", "breathy", "smoky"), "British": ("British",), "male": ("male", "man's", "masculine")}


@dataclass(frozen=True)
class Setting:
    """A task with the published options, a batch for it, and the clips that the batch was made of."""

    task: ContrastiveTask
    batch: Batch
    clips: list[np.ndarray]

    @property
    def model(self) -> ParaSpeechCLAPModel:
        return self.task.model


@pytest.fixture(scope="module")
def setting() -> Setting:
    params = load_params(PRESETS_FOLDER / "paper.yaml")
    model_config = replace(
        params.model,
        speech=EncoderConfig(pooling=params.model.speech.pooling, config=WAVLM),
        text=EncoderConfig(pooling=params.model.text.pooling, config=TEXT_ENCODER),
        tokenizer_vocab_size=256,
        max_text_tokens=64,
    )
    prompts = [template.format(word) for words in WORDS.values() for word in words for template in TEMPLATES]
    model, processor = build_model(model_config, [*CAPTIONS, *prompts], 16000, seed=params.seed)
    for name, parameter in model.named_parameters():
        if "projection" in name:  # as far from linear, and from fresh layer norms, as training could make them
            parameter.data.mul_(4).add_(torch.randn(parameter.shape) / 20)
    task = ContrastiveTask(model, processor, params.train["intrinsic"], TAGS).eval()
    rng = np.random.default_rng(0)
    clips = [rng.normal(0.1, 0.3, length).astype(np.float32) for length in (9000, 5000, 16000, 7001, 4321)]
    examples = [Example(*example) for example in zip(clips, CAPTIONS, TAGS_OF, strict=True)]
    return Setting(task, task.collator().collate(examples, rng), clips)


def speech_embedding(model: ParaSpeechCLAPModel, clip: np.ndarray) -> Array:
    """Zero mean and unit variance; the encoder's last layer; the mean over its frames."""
    with torch.no_grad():
        frames = model.audio_model(normalised(clip)).last_hidden_state[0]
    return projected(to_numpy(frames).mean(0), model.audio_projection.state_dict())


def text_embedding(model: ParaSpeechCLAPModel, ids: list[int]) -> Array:
    """The encoder's last layer at the first token."""
    with torch.no_grad():
        tokens = model.text_model(torch.tensor([ids])).last_hidden_state[0]
    return projected(to_numpy(tokens)[0], model.text_projection.state_dict())


def tokens_of_texts(setting: Setting) -> list[list[int]]:
    """The token ids of every text of the batch, without padding."""
    lengths = to_numpy(setting.batch.text_mask).sum(1).astype(int)
    return [ids[:length] for ids, length in zip(setting.batch.input_ids.tolist(), lengths, strict=True)]


def recomputed(setting: Setting) -> tuple[Array, Array]:
    """(5, D) speech and (5 + 3, D) text embeddings."""
    speech = np.stack([speech_embedding(setting.model, clip) for clip in setting.clips])
    return speech, np.stack([text_embedding(setting.model, ids) for ids in tokens_of_texts(setting)])


def softmax_cross_entropy(logits: Array) -> float:
    """The mean over rows of -log softmax at the row's own number."""
    return float(np.mean([math.log(np.exp(row).sum()) - row[number] for number, row in enumerate(logits)]))


def test_the_paper_preset_has_the_published_options(setting: Setting) -> None:
    config, model = setting.task.config, setting.model
    assert (config.contrastive_loss, config.duplicate_captions, config.tag_loss_weight) == ("info_nce", "negatives", 1)
    assert (model.config.audio_pooling, model.config.text_pooling) == ("mean", "cls")
    assert model.audio_projection.dropout.p == model.text_projection.dropout.p == 0.5
    assert model.config.projection_dim == 768
    assert model.logit_bias is None
    assert model.logit_scale.item() == pytest.approx(1 / 0.07)


def test_embeddings_are_the_published_ones(setting: Setting) -> None:
    speech, texts = recomputed(setting)
    with torch.no_grad():
        of_task = setting.task._embed(setting.batch)
    for got, expected in zip(of_task, (speech, texts), strict=True):
        np.testing.assert_allclose(to_numpy(got), expected, rtol=0, atol=1e-6)


def test_each_tag_has_one_prompt_in_one_of_its_wordings(setting: Setting) -> None:
    """A synonym in a template; a tag without synonyms has the default prompt."""
    tokenizer = setting.task.processor.tokenizer
    prompts = tokenizer.batch_decode(tokens_of_texts(setting)[len(CAPTIONS) :], skip_special_tokens=True)
    for tag, prompt in zip(TAGS, prompts, strict=True):
        templates = TEMPLATES if len(WORDS[tag]) > 1 else TEMPLATES[:1]
        wordings = [template.format(word).lower() for word in WORDS[tag] for template in templates]
        assert re.sub(r"\W+", "", prompt) in [re.sub(r"\W+", "", wording) for wording in wordings]


def test_the_objective_is_the_published_one(setting: Setting) -> None:
    """Symmetric InfoNCE, in which the repeated caption is a negative, plus the tags' binary cross-entropy."""
    speech, texts = recomputed(setting)
    captions, prompts = texts[: len(CAPTIONS)], texts[len(CAPTIONS) :]
    logits = speech @ captions.T / 0.07
    contrastive = (softmax_cross_entropy(logits) + softmax_cross_entropy(logits.T)) / 2
    of_clip = []
    for clip, tags in zip(speech, TAGS_OF, strict=True):
        probability = 1 / (1 + np.exp(-prompts @ clip))
        likelihood = [p if tag in tags else 1 - p for tag, p in zip(TAGS, probability, strict=True)]
        of_clip.append(-np.log(likelihood).mean())
    tag_loss = np.mean([loss for loss, tags in zip(of_clip, TAGS_OF, strict=True) if tags])

    with torch.no_grad():
        losses = setting.task(setting.batch)
    assert losses.report["contrastive"].item() == pytest.approx(contrastive, rel=1e-6)
    assert losses.report["tags"].item() == pytest.approx(tag_loss, rel=1e-6)
    assert losses.total.item() == pytest.approx(contrastive + 1.0 * tag_loss, rel=1e-6)
