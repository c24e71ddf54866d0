"""Settings of what a run writes: weights and resume states."""

from dataclasses import dataclass

from minimind_sft.paths import in_repository
from minimind_sft.settings.runtime import DTYPES
from minimind_sft.settings.spec import setting


@dataclass(frozen=True)
class SavingSettings:
    """Files that the run writes, and the earlier run that it continues."""

    save_dir: str = setting(
        in_repository("out"), "folder for weights, metrics and resume states", kind="path")
    save_dtype: str = setting("float16", "precision of the written weights", choices=DTYPES[1:])
    from_resume: bool = setting(False, "continue from the newest resume state of that name")
    overwrite: bool = setting(
        False, "replace another run's files of the same name; they move to <name>.previous, which keeps one generation")
    allow_changed_data: bool = setting(
        False, "continue from a resume state even if the data, --seed, --max_seq_len or another setting that decides "
               "the samples has changed")
    keep_checkpoints: int = setting(2, "number of resume states to keep", min=1)
    save_interval: int = setting(
        0, "steps between resume states; 0: every 10 seconds, or less often where writing one would take more than 3% "
           "of the time", min=0)
    async_save: bool = setting(
        False, "write resume states in a thread while training continues; takes 12 bytes of main memory per parameter")
    keep_best: bool = setting(
        True, "write the best weights (--best_by), if there is an evaluation set; 0: the last ones",
        decides="weights")


@dataclass(frozen=True)
class WeightSavingSettings(SavingSettings):
    """Files that the run writes, and the earlier run that it continues."""

    save_weight: str = setting(
        "", "name of the weights to write, as <save_dir>/<save_weight>_<hidden_size>[_moe].pth", kind="name")
