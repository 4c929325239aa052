"""Our classes with transformers' Auto classes; each function runs as soon as the module of its name is imported.

`psclap/__init__.py` arranges for that, and for those modules to be imported as soon as the Auto classes are: in the
middle of transformers' own imports, so a function asks for no other Auto class than that it registers with.
"""

from __future__ import annotations

from types import ModuleType


def model_config(module: ModuleType) -> None:
    """With AutoConfig."""
    from transformers import AutoConfig

    for config in (module.LogMelConvConfig, module.ParaSpeechCLAPConfig):
        AutoConfig.register(config.model_type, config)


def dual_encoder(module: ModuleType) -> None:
    """With AutoModel."""
    from transformers import AutoModel

    from psclap.models.logmel_conv import LogMelConvModel

    for model in (LogMelConvModel, module.ParaSpeechCLAPModel):
        AutoModel.register(model.config_class, model)


def feature_extractor(module: ModuleType) -> None:
    """With AutoFeatureExtractor."""
    from transformers import AutoFeatureExtractor

    from psclap.model_config import ParaSpeechCLAPConfig

    AutoFeatureExtractor.register(ParaSpeechCLAPConfig, module.ParaSpeechCLAPFeatureExtractor)


def processor(module: ModuleType) -> None:
    """With AutoProcessor."""
    from transformers import AutoProcessor

    from psclap.model_config import ParaSpeechCLAPConfig

    AutoProcessor.register(ParaSpeechCLAPConfig, module.ParaSpeechCLAPProcessor)
