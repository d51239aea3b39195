"""Every dataclass a user fills in. Free of torch, so that the command line can show its help at once.

Immutable and printable: the log line is the experiment. Each field is an argument of the API, an option of the command line, and
a key of the JSON configuration; an impossible value is refused here, with the argument, the allowed range and the value.
"""

from purify_engine.config.checks import one_of, require, require_count
from purify_engine.config.devices import Precision
from purify_engine.config.evaluation import (
    AttackConfig,
    AttackKind,
    AttackLoss,
    AttackNorm,
    AttackStart,
    AttackSurface,
    DemoConfig,
    EvaluationConfig,
)
from purify_engine.config.networks import (
    Activation,
    ClassifierArchitecture,
    ClassifierConfig,
    DecoderAttention,
    Padding,
    Prediction,
    Resample,
    Sinusoid,
    TimeInjection,
    UNetConfig,
)
from purify_engine.config.offline import OfflineConfig
from purify_engine.config.own import OwnDenoiserConfig, OwnGuideConfig, OwnPrediction, TimeInput
from purify_engine.config.plain import SCHEMA_VERSION, from_dict, to_dict
from purify_engine.config.presets import PRESETS
from purify_engine.config.purification import (
    RANGE_ROUNDING,
    UNIT_RANGE,
    ClipX0,
    GradientMode,
    Growth,
    GuidanceConfig,
    GuidanceForm,
    GuidanceInput,
    GuideKind,
    NoiseMode,
    PseudoLabel,
    PurifierConfig,
    Sampler,
    ScheduleConfig,
    ScheduleKind,
    Sizes,
    TimeLabels,
)
from purify_engine.config.timesteps import Spacing, check_timesteps, ddim_landings, respaced_timesteps, spaced_timesteps
from purify_engine.config.training import (
    Assembly,
    ClassifierTraining,
    DiffusionTraining,
    Perturbation,
    TradesTraining,
    Training,
)

__all__ = [
    "Activation",
    "Assembly",
    "AttackConfig",
    "AttackKind",
    "AttackLoss",
    "AttackNorm",
    "AttackStart",
    "AttackSurface",
    "ClassifierArchitecture",
    "ClassifierConfig",
    "ClassifierTraining",
    "ClipX0",
    "DecoderAttention",
    "DemoConfig",
    "DiffusionTraining",
    "EvaluationConfig",
    "GradientMode",
    "Growth",
    "GuidanceConfig",
    "GuidanceForm",
    "GuidanceInput",
    "GuideKind",
    "NoiseMode",
    "OfflineConfig",
    "OwnDenoiserConfig",
    "OwnGuideConfig",
    "OwnPrediction",
    "PRESETS",
    "Padding",
    "Perturbation",
    "Precision",
    "Prediction",
    "PseudoLabel",
    "PurifierConfig",
    "RANGE_ROUNDING",
    "Resample",
    "SCHEMA_VERSION",
    "Sampler",
    "ScheduleConfig",
    "ScheduleKind",
    "Sinusoid",
    "Sizes",
    "Spacing",
    "TimeInjection",
    "TimeInput",
    "TimeLabels",
    "TradesTraining",
    "Training",
    "UNIT_RANGE",
    "UNetConfig",
    "check_timesteps",
    "ddim_landings",
    "from_dict",
    "one_of",
    "require",
    "require_count",
    "respaced_timesteps",
    "spaced_timesteps",
    "to_dict",
]
