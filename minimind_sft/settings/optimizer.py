"""Settings of the optimizer: how long, in which steps, at which learning rate."""

from dataclasses import dataclass

from minimind_sft.settings.spec import MAX_COUNT, setting


@dataclass(frozen=True)
class OptimizerSettings:
    """How long the model trains, in which steps, and at which learning rate."""

    epochs: int = setting(1, "passes over the data", min=1, max=MAX_COUNT, decides="weights")
    max_steps: int = setting(
        0, "stop after this many optimizer steps; 0: after --epochs", min=0, max=MAX_COUNT, decides="weights")
    batch_size: int = setting(32, "rows (documents, conversations) per batch and rank", min=1, max=MAX_COUNT)
    accumulation_steps: int = setting(
        1, "batches per optimizer step: a step averages over all supervised tokens of batch_size * accumulation_steps "
           "* ranks rows", min=1, max=MAX_COUNT)
    learning_rate: float = setting(
        5e-4, "peak learning rate; docs/learning_rate.md shows the sweep behind the default", above=0,
        decides="weights")
    schedule: str = setting(
        "cosine", "how the learning rate goes on after the warmup: falling all along (cosine, linear), not at all "
                  "(constant), or only at the end (wsd: warmup, stable, decay)",
        choices=("cosine", "linear", "constant", "wsd"), decides="weights")
    min_lr_ratio: float = setting(
        0.1, "a schedule that falls ends at this share of --learning_rate", kind="share", decides="weights")
    decay_share: float = setting(
        0.2, "share of the steps in which --schedule wsd decays", above=0, max=1, decides="weights")
    warmup_steps: int = setting(0, "steps of linear warmup", min=0, decides="weights")
    weight_decay: float = setting(0.1, "AdamW's weight decay, on matrices only", min=0, decides="weights")
    grad_clip: float = setting(1.0, "maximum gradient norm; 0: no clipping", min=0, decides="weights")
    max_bad_steps: int = setting(
        10, "stop after this many steps in a row with a loss or gradient that is not finite", min=1)

    def problems(self) -> list[str]:
        found = []
        if (rows := self.batch_size * self.accumulation_steps) > MAX_COUNT:
            found.append(f"--batch_size times --accumulation_steps is {rows:,}, expected at most {MAX_COUNT:,} rows")
        if self.schedule == "constant" and self.min_lr_ratio != type(self).min_lr_ratio:
            found.append(f"--min_lr_ratio {self.min_lr_ratio:g}: --schedule constant does not fall")
        if self.schedule != "wsd" and self.decay_share != type(self).decay_share:
            found.append(f"--decay_share {self.decay_share:g}: only --schedule wsd has a decay of its own")
        return found
