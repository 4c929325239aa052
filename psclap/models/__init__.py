"""The dual encoder and its parts. Importing this package registers our classes with transformers' Auto classes."""

from transformers import AutoConfig, AutoModel, AutoProcessor

from psclap.models.dual_encoder import ParaSpeechCLAPConfig, ParaSpeechCLAPModel
from psclap.models.logmel_conv import LogMelConvConfig, LogMelConvModel
from psclap.models.processor import ParaSpeechCLAPProcessor

AutoConfig.register(LogMelConvConfig.model_type, LogMelConvConfig)
AutoModel.register(LogMelConvConfig, LogMelConvModel)
AutoConfig.register(ParaSpeechCLAPConfig.model_type, ParaSpeechCLAPConfig)
AutoModel.register(ParaSpeechCLAPConfig, ParaSpeechCLAPModel)
AutoProcessor.register(ParaSpeechCLAPConfig, ParaSpeechCLAPProcessor)

__all__ = [
    "LogMelConvConfig",
    "LogMelConvModel",
    "ParaSpeechCLAPConfig",
    "ParaSpeechCLAPModel",
    "ParaSpeechCLAPProcessor",
]
