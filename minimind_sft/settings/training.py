"""The settings of the trainers: groups, with each trainer's defaults."""

from dataclasses import dataclass

from minimind_sft.settings.data import DataSettings, SFTDataSettings
from minimind_sft.settings.evaluation import EvaluationSettings
from minimind_sft.settings.logging import LoggingSettings
from minimind_sft.settings.lora import LoraSettings
from minimind_sft.settings.model import ModelSettings
from minimind_sft.settings.optimizer import OptimizerSettings
from minimind_sft.settings.runtime import RuntimeSettings, room_problems
from minimind_sft.settings.saving import SavingSettings, WeightSavingSettings


@dataclass(frozen=True)
class TrainSettings:
    """Settings that all trainers share."""

    data: DataSettings = DataSettings()
    model: ModelSettings = ModelSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    runtime: RuntimeSettings = RuntimeSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    saving: SavingSettings = SavingSettings()
    logging: LoggingSettings = LoggingSettings()

    def problems(self) -> list[str]:
        found = room_problems(self.runtime.micro_batch_tokens, self.data.max_seq_len)
        if not (self.data.eval_data_path or self.data.eval_share):
            found += [f"{flag}: there is nothing to evaluate on; --eval_data_path or --eval_share names samples"
                      for flag, is_set in (("--best_by exact_match", self.evaluation.best_by == "exact_match"),
                                           ("--early_stop_patience", self.evaluation.early_stop_patience)) if is_set]
        return found


@dataclass(frozen=True)
class PretrainSettings(TrainSettings):
    """Settings of trainer/train_pretrain.py."""

    optimizer: OptimizerSettings = OptimizerSettings(accumulation_steps=8)
    evaluation: EvaluationSettings = EvaluationSettings(eval_samples=0)
    saving: WeightSavingSettings = WeightSavingSettings(save_weight="pretrain")


@dataclass(frozen=True)
class SFTSettings(TrainSettings):
    """Settings of trainer/train_full_sft.py."""

    data: SFTDataSettings = SFTDataSettings()
    model: ModelSettings = ModelSettings(from_weight="pretrain")
    optimizer: OptimizerSettings = OptimizerSettings(epochs=2, batch_size=16)
    saving: WeightSavingSettings = WeightSavingSettings(save_weight="full_sft")


@dataclass(frozen=True)
class LoraSFTSettings(TrainSettings):
    """Settings of trainer/train_lora.py."""

    data: SFTDataSettings = SFTDataSettings()
    model: ModelSettings = ModelSettings(from_weight="full_sft")
    lora: LoraSettings = LoraSettings()
    optimizer: OptimizerSettings = OptimizerSettings(epochs=2, batch_size=16, learning_rate=3e-3)
    saving: SavingSettings = SavingSettings(save_dtype="float32")

    def problems(self) -> list[str]:
        found = super().problems()
        if self.model.from_weight == "none":
            found.append("--from_weight none: an adapter needs a base model")
        if self.model.freeze:
            found.append("--freeze: not needed; adapters leave everything else as it is, except --modules_to_save")
        return found
