"""Watches a run and warns, in plain words, of what a person would want to know before its end.

A watcher sees the lines of the metrics file and nothing else, except that each step's loss and gradient norm are
compared with those of the logged steps. So the watcher of a resumed run, which reads the file from its beginning, is in
the state of one that never stopped, and gives the same warnings.
"""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean, median, variance
from typing import Any, NamedTuple

from minimind_sft.settings.optimizer import OptimizerSettings

RISE = 0.02
"""How much, in nats, a validation loss must rise to be worth a warning: perplexity then rises by 2%."""
RECENT, ENOUGH = 25, 10
"""A step is compared with so many logged steps before it, once there are `ENOUGH`."""
DEVIATIONS = 7.0
"""A spike is so many standard deviations off, as in the spike score of OLMo 2 (arXiv:2501.00656). Here median and
median absolute deviation stand for mean and standard deviation, because spikes must not hide one another."""
NORMAL = 1.4826
"""The standard deviation of a normal distribution, in median absolute deviations."""
LOSS_JUMP = 0.5
"""Nats; smaller jumps are no spikes, however quiet the loss was before."""
NORM_JUMP = 10.0
"""A gradient norm must be so many times the median to be a spike."""
NORM_DEVIATIONS = 5.0
"""Its logarithm must also be so many standard deviations off: norms vary by factors, in some runs by large ones."""
TINY_NORM = 1e-12
SMALL_STEP = 0.5
"""Steps with less than this share of the usual tokens are not compared."""
QUIET_STEPS, QUIET_SHARE = 50, 0.05
"""After a spike no other of its kind is reported for so many steps, or this share of the run if that is longer."""
EARLY_SHARE, EARLY_STEPS = 0.2, 20
"""The share of the run, after the warmup, in which it must learn something, and steps if they are more."""
LITTLE_GAIN, VERY_LITTLE_GAIN = 0.002, 0.005
"""A validation loss, or else a training loss, that has fallen by less than this share has not fallen."""
MIN_LOGGED = 20
"""Without validation losses, so many training losses are needed to tell."""
SURE = 3.0
"""Standard errors; training losses that fell by less may not have fallen at all."""


class RunWarning(NamedTuple):
    """A warning: its name, for programs, and one sentence for people."""

    name: str
    text: str


class LoggedStep(NamedTuple):
    """A step that made an update, as far as the metrics file tells."""

    step: int
    loss: float
    grad_norm: float
    tokens: float
    """The supervised tokens of this step alone; 0 if unknown."""


class Watcher:
    """Sees the lines of a metrics file in their order, and returns the warnings that follow from each."""

    def __init__(self, optimizer: OptimizerSettings, total_steps: int):
        self._optimizer, self._total_steps = optimizer, total_steps
        self._steps: list[LoggedStep] = []
        self._recent: deque[LoggedStep] = deque(maxlen=RECENT)
        self._evaluations: list[tuple[int, float]] = []
        self._said: dict[str, int] = {}
        """The step of the last warning of each name."""
        self._given: set[RunWarning] = set()
        self._lowest_said = -1
        self._learns = False

    def see(self, line: Mapping[str, Any]) -> list[RunWarning]:
        """Takes a line into account, and returns the warnings that follow it."""
        step, found = line["step"], []
        if "warning" in line:
            self._given.add(RunWarning(str(line.get("name")), str(line["warning"])))
        elif (loss := _number(line, "eval_loss")) is not None:
            self._evaluations.append((step, loss))
            found = [*self._validation_rises(), *self._nothing_learned(step)]
        elif (loss := _number(line, "loss")) is not None and "skipped" not in line:
            logged = LoggedStep(step, loss, _number(line, "grad_norm") or 0.0,
                                _number(line, "step_supervised_tokens") or 0.0)
            found = self.spikes(logged)
            self._steps.append(logged)
            self._recent.append(logged)
            if not self._evaluations and len(self._steps) % MIN_LOGGED == 0:  # else the next evaluation tells
                found += self._nothing_learned(step)
        self._said.update((warning.name, step) for warning in found)
        return found

    def has_given(self, warning: RunWarning) -> bool:
        """Whether the lines have this warning already."""
        return warning in self._given

    def spikes(self, at: LoggedStep) -> list[RunWarning]:
        """Returns warnings if loss or gradient norm of a step stand out from those of the logged steps before it.

        A step with far fewer tokens, such as the last one of an epoch, is noisier than they are and tells nothing.
        """
        step, loss, grad_norm, tokens = at
        found: list[RunWarning] = []
        if len(self._recent) < ENOUGH or not (math.isfinite(loss) and math.isfinite(grad_norm)):
            return found
        if loss <= max(one.loss for one in self._recent) and grad_norm <= max(one.grad_norm for one in self._recent):
            return found  # nearly every step; medians take ten times as long
        if 0 < tokens < SMALL_STEP * median(one.tokens for one in self._recent):
            return found
        if self._may_say("loss_spike", step) and self._loss_stands_out(loss):
            usual = median(one.loss for one in self._recent)
            found.append(RunWarning("loss_spike", (
                f"the loss jumped to {loss:.4g} at step {step}, from about {usual:.4g} in the steps before; if it does "
                "not come back, a lower --learning_rate helps, else look at the rows")))
        if self._may_say("grad_norm_spike", step) and self._norm_stands_out(grad_norm):
            usual = median(one.grad_norm for one in self._recent)
            clip = self._optimizer.grad_clip
            clipped = f"clipped to {clip:g}" if clip else "and nothing clips it: --grad_clip 1 would"
            found.append(RunWarning("grad_norm_spike", (
                f"the gradient norm jumped to {grad_norm:.3g} at step {step} ({clipped}), from about {usual:.3g} in "
                "the steps before")))
        return found

    def _loss_stands_out(self, loss: float) -> bool:
        losses = [one.loss for one in self._recent]
        usual = median(losses)
        deviation = NORMAL * median(abs(one - usual) for one in losses)
        return loss - usual > max(LOSS_JUMP, DEVIATIONS * deviation, 2 * (max(losses) - usual))

    def _norm_stands_out(self, norm: float) -> bool:
        norms = [one.grad_norm for one in self._recent]
        if norm <= max(NORM_JUMP * median(norms), 2 * max(norms), self._optimizer.grad_clip or 1.0):
            return False
        logs = [math.log(max(one, TINY_NORM)) for one in norms]
        usual = median(logs)
        return math.log(norm) - usual > NORM_DEVIATIONS * NORMAL * median(abs(one - usual) for one in logs)

    def _may_say(self, name: str, step: int) -> bool:
        quiet = max(QUIET_STEPS, QUIET_SHARE * self._total_steps)
        return name not in self._said or step > self._said[name] + quiet

    def _validation_rises(self) -> Iterator[RunWarning]:
        """Warns if the last two validation losses rose while the training loss fell; once for each lowest one."""
        lowest, loss = min(self._evaluations, key=lambda one: one[1])
        since = [one for step, one in self._evaluations if step > lowest]
        if len(since) < 2 or not loss < since[-2] < since[-1] or since[-1] - loss < RISE or lowest == self._lowest_said:
            return
        before = max((step for step, _ in self._evaluations if step < lowest), default=0)
        early, late = _halves([one.loss for one in self._steps if one.step > before])
        if not (early and late and fmean(late) < fmean(early)):
            return
        self._lowest_said = lowest
        yield RunWarning("validation_rises", (
            f"the validation loss has risen since step {lowest}, from {loss:.4f} to {since[-1]:.4f}, while the "
            f"training loss fell from {fmean(early):.4g} to {fmean(late):.4g}: the model learns its rows by heart; "
            "fewer --epochs or more rows help"))

    def _nothing_learned(self, step: int) -> Iterator[RunWarning]:
        """Warns once if neither validation nor training loss falls after the warmup."""
        first = self._optimizer.warmup_steps
        is_early = step - first < max(EARLY_SHARE * self._total_steps, EARLY_STEPS)
        if self._learns or "nothing_learned" in self._said or is_early:
            return
        steps = [one for one in self._steps if one.step > first]
        if len(steps) < 2:
            return
        early, late = _halves([one.loss for one in steps])
        start, end, kind = fmean(early), fmean(late), "training"
        if self._evaluations:
            start, end, kind = self._evaluations[0][1], self._evaluations[-1][1], "validation"
            stands = self._validation_stands(first)
        else:
            stands = len(steps) >= MIN_LOGGED and _stands(early, late)
        self._learns = _falls(early, late)
        if stands and not self._learns:
            yield RunWarning("nothing_learned", (
                f"nothing is being learned: the {kind} loss was {start:.4g} at first and is {end:.4g} at step {step}; "
                "--learning_rate may be far too low, or what trains may not matter"))

    def _validation_stands(self, warmup: int) -> bool:
        (_, first), *later = self._evaluations
        after = [loss for step, loss in later if step > warmup]
        return len(after) >= 2 and first - min(after) < LITTLE_GAIN * abs(first)


def _number(line: Mapping[str, Any], name: str) -> float | None:
    value = line.get(name)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _halves(values: Sequence[float]) -> tuple[Sequence[float], Sequence[float]]:
    middle = len(values) // 2
    return values[:middle], values[middle:]


def _error(early: Sequence[float], late: Sequence[float]) -> float:
    """Returns the standard error of the difference of two means (Welch's)."""
    return math.sqrt(variance(early) / len(early) + variance(late) / len(late))


def _falls(early: Sequence[float], late: Sequence[float]) -> bool:
    """Whether the losses surely fall."""
    if min(len(early), len(late)) < 2:
        return False
    return fmean(early) - fmean(late) > SURE * _error(early, late)


def _stands(early: Sequence[float], late: Sequence[float]) -> bool:
    """Whether the losses surely do not fall by more than `VERY_LITTLE_GAIN`."""
    fallen = fmean(early) - fmean(late)
    return fallen + SURE * _error(early, late) < VERY_LITTLE_GAIN * abs(fmean(early))
