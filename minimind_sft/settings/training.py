"""The settings of the trainers: groups, with each trainer's defaults."""

from dataclasses import dataclass

from minimind_sft.settings.data import DataSettings, SFTDataSettings
from minimind_sft.settings.logging import LoggingSettings
from minimind_sft.settings.model import ModelSettings
from minimind_sft.settings.optimizer import OptimizerSettings
from minimind_sft.settings.runtime import RuntimeSettings, room_problems
from minimind_sft.settings.saving import SavingSettings


@dataclass(frozen=True)
class TrainSettings:
    """Settings that all trainers share."""

    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    saving: SavingSettings = SavingSettings()
    logging: LoggingSettings = LoggingSettings()

    def problems(self) -> list[str]:
        return room_problems(self.runtime.micro_batch_tokens, self.data.max_seq_len)


@dataclass(frozen=True)
class PretrainSettings(TrainSettings):
    """Settings of trainer/train_pretrain.py."""

    optimizer: OptimizerSettings = OptimizerSettings(accumulation_steps=8)
    saving: SavingSettings = SavingSettings(save_weight="pretrain")


@dataclass(frozen=True)
class SFTSettings(TrainSettings):
    """Settings of trainer/train_full_sft.py."""

    data: SFTDataSettings = SFTDataSettings()
    model: ModelSettings = ModelSettings(from_weight="pretrain")
    optimizer: OptimizerSettings = OptimizerSettings(epochs=2, batch_size=16)
    saving: SavingSettings = SavingSettings(save_weight="full_sft")
