"""Settings of the evaluations during a run: when, on what, and what follows from them."""

from dataclasses import dataclass

from minimind_sft.settings.spec import setting


@dataclass(frozen=True)
class EvaluationSettings:
    """How often the model is evaluated, what it answers, and what follows."""

    eval_interval: int = setting(0, "steps between evaluations; 0: ten over the whole run", min=0)
    eval_samples: int = setting(
        4, "evaluation samples that the model answers at each evaluation; the answers are compared with those of the "
           "data; 0: none", min=0)
    eval_max_new_tokens: int = setting(64, "maximum tokens of such an answer", min=1)
    best_by: str = setting(
        "eval_loss", "the best weights have the lowest validation loss, or the most answers that match exactly",
        choices=("eval_loss", "exact_match"), decides="weights")
    early_stop_patience: int = setting(
        0, "stop after this many evaluations in a row without a better --best_by; 0: never", min=0, decides="weights")

    def problems(self) -> list[str]:
        if self.best_by == "exact_match" and not self.eval_samples:
            return ["--best_by exact_match needs answers to compare: --eval_samples is 0"]
        return []
