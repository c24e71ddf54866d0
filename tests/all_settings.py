"""The settings of every program."""

from minimind_sft.settings.chat import ChatSettings
from minimind_sft.settings.convert import ConvertModelSettings
from minimind_sft.settings.evaluate import EvaluateSettings
from minimind_sft.settings.merge import MergeSettings
from minimind_sft.settings.scripts import (
    CompareSettings,
    ConvertSettings,
    EstimateSettings,
    InspectSettings,
    PlotSettings,
    TokenizerSettings,
    WatchSettings,
)
from minimind_sft.settings.serve import ServeSettings
from minimind_sft.settings.training import LoraSFTSettings, PretrainSettings, SFTSettings

PROGRAMS = (PretrainSettings, SFTSettings, LoraSFTSettings, TokenizerSettings, ChatSettings, InspectSettings,
            EvaluateSettings, EstimateSettings, ConvertSettings, ConvertModelSettings, MergeSettings, PlotSettings,
            CompareSettings, WatchSettings, ServeSettings)
