"""Sets up what every recipe needs around the loop: data, starting weights, resuming, output files."""

import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from minimind_sft import __version__
from minimind_sft.data.batching import EvaluationBatches, TrainingSteps
from minimind_sft.data.dataset import ExampleDataset, Mixture, Samples, hold_out
from minimind_sft.data.prepared import NAMED_AT_ONCE, PreparedDataset, prepare
from minimind_sft.data.samples import SFTEncoder
from minimind_sft.data.sources import Source, find_sources
from minimind_sft.device import compiles_rightly, described_dtype, position_multiple
from minimind_sft.errors import UserError
from minimind_sft.files import check_writable, read_object
from minimind_sft.matching import check_template, check_tokenizer, template_facts, tokenizer_facts
from minimind_sft.model.config import PRESETS, ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.finding import find_weights
from minimind_sft.model.weights import read_weights, sidecar_path, weights_path, write_weights
from minimind_sft.paths import shown
from minimind_sft.settings.model import ModelSettings, check_shape, given_shape
from minimind_sft.settings.saving import SavingSettings
from minimind_sft.settings.spec import as_typed, names_of
from minimind_sft.training.advice import evaluation_advice, length_of_run, rate_advice, warmup_advice
from minimind_sft.training.checkpoint import Checkpoints
from minimind_sft.training.distributed import restarted_by_torchrun
from minimind_sft.training.experience import Experience, strangeness
from minimind_sft.training.heap import keep_freed_memory
from minimind_sft.training.identity import check_agreement, resume, run_identity, run_settings
from minimind_sft.training.learner import Learner
from minimind_sft.training.loop import Evaluation, fit, planned_steps
from minimind_sft.training.optim import build_optimizer
from minimind_sft.training.outputs import Outputs
from minimind_sft.training.parallel import gather, parallelize
from minimind_sft.training.progress import Progress, read_metrics, start_wandb
from minimind_sft.training.resume_state import TrainState
from minimind_sft.training.run import Run
from minimind_sft.training.saving import Saver
from minimind_sft.training.summary import closing_lines, next_lines


def load_datasets(run: Run) -> tuple[Samples, Samples | None]:
    """(training set, evaluation set or None): `--eval_data_path`, or `--eval_share` of the training rows held out.

    Raises:
        UserError: for files, rows and shares that cannot be used.
    """
    data = run.settings.data
    sources = find_sources(data.data_path, "--data_path")
    eval_sources = find_sources(data.eval_data_path, "--eval_data_path") if data.eval_data_path else []
    if any(source.share for source in eval_sources):
        raise UserError("--eval_data_path: expected files without shares; every row is evaluated once")
    folder = Path(data.prepared_dir or Path(run.settings.saving.save_dir) / "prepared")

    def prepare_all() -> list[PreparedDataset]:
        return [prepare(source.files, run.rows, folder, data.bad_rows, run.ranks.is_main, run.say)
                for source in (*sources, *eval_sources)]

    datasets = run.ranks.first_on_each_machine(prepare_all)
    train_sets, held_out = datasets[:len(sources)], []
    if not eval_sources:
        parts = [hold_out(dataset, data.eval_share, data.seed) for dataset in train_sets]
        train_sets, held_out = [train for train, _ in parts], [held for _, held in parts if held is not None]
    train_set = mixed(train_sets, sources)
    tell_sources(run, "data", sources, datasets, train_set)
    if eval_sources:
        tell_sources(run, "evaluation", eval_sources, datasets[len(sources):])
        trained_on = {sum_ for dataset in datasets[:len(sources)] for sum_ in dataset.sums}
        if trained_on.intersection(datasets[-1].sums):
            run.say("evaluation  these rows are trained on as well: the validation loss says nothing about new ones")
        return train_set, datasets[-1]
    if not held_out:
        return train_set, None
    eval_set = held_out[0] if len(held_out) == 1 else Mixture(held_out)
    held = "1 sample of it is" if len(eval_set) == 1 else f"{len(eval_set):,} samples of it are"
    run.say(f"evaluation  {held} held out (--eval_share {data.eval_share:g})")
    return train_set, eval_set


def mixed(datasets: Sequence[ExampleDataset], sources: Sequence[Source]) -> Samples:
    """One dataset of all sources, in their shares if they have some."""
    if sources[0].share is None:
        (dataset,) = datasets
        return dataset
    return Mixture(datasets, [source.share for source in sources])


def tell_sources(run: Run, title: str, sources: Sequence[Source], datasets: Sequence[PreparedDataset],
                 mixture: Samples | None = None) -> None:
    """Prints a line for each source (its rows, its part of an epoch), and the bad rows that were skipped."""
    for number, (source, dataset) in enumerate(zip(sources, datasets, strict=False)):
        drawn = (f" [{mixture.draws[number]:,} of the {len(mixture):,} samples of an epoch]"
                 if isinstance(mixture, Mixture) else "")
        run.say(f"{title:<10}  {shown(source.name)}: {dataset.counts.summary()}{drawn}")
        for line in dataset.counts.bad[:NAMED_AT_ONCE]:
            run.say(f"skipped     {line}")
        if dataset.counts.bad_rows > NAMED_AT_ONCE:
            run.say("skipped     ... (scripts/inspect_data.py lists all)")


def evaluation_share(run: Run, eval_set: Samples) -> EvaluationBatches:
    """This rank's batches of the evaluation set."""
    return EvaluationBatches(eval_set, run.settings.runtime.micro_batch_tokens, run.ranks.rank, run.ranks.world_size,
                             batch_multiple(run))


def batch_multiple(run: Run) -> int:
    runtime = run.settings.runtime
    return position_multiple(run.ranks.device, runtime.use_compile, runtime.micro_batch_tokens)


def starting_model(run: Run) -> MiniMindForCausalLM:
    """Builds the model of `--from_weight`, or a new one of the size that the flags say.

    Raises:
        UserError: if the weights disagree with the flags, the tokenizer or the chat template.
    """
    settings = run.settings
    if settings.runtime.use_compile and run.ranks.device.type == "cpu" and not compiles_rightly():
        raise UserError("--use_compile 1: with ATEN_CPU_CAPABILITY=avx2 PyTorch compiles wrong code for this "
                        "processor, which has AVX-512; unset the variable or leave the flag out")
    for notice in run.tokenizer.notices:
        run.say(f"tokenizer   {notice}")
    if settings.model.from_weight == "none":
        torch.manual_seed(settings.data.seed)
        model = MiniMindForCausalLM(new_model_config(settings.model, run.tokenizer.vocab_size))
        origin = "new"
    else:
        path = starting_weights(run)
        # A resumed run takes its weights from the resume state; these may be its own, half written.
        weights = read_weights(path, check_sum=not goes_on(settings.saving))
        check_flags(settings.model, weights.config, path)
        for notice in (*weights.notices, *check_tokenizer(weights, run.tokenizer, settings.data.tokenizer_path)):
            run.say(f"weights     {notice}")
        if isinstance(run.rows, SFTEncoder):
            check_template(weights, run.rows.template, settings.data.chat_template, settings.data.end_of_turn)
        model, origin = weights.build_model(settings.model.dropout), shown(path)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    shape = model.config
    run.say(f"model       {origin}: {shape.hidden_size} x {shape.num_hidden_layers} layers, "
            f"{parameters / 1e6:.1f}M parameters{', mixture of experts' if shape.use_moe else ''}; "
            f"{described_dtype(settings.runtime.dtype, run.ranks.device)} on {run.ranks.device}")
    model.to(run.ranks.device)
    model.model.gradient_checkpointing = settings.runtime.gradient_checkpointing
    if settings.runtime.use_compile:
        for layer in model.model.layers:
            layer.compile(dynamic=run.ranks.device.type != "cuda")  # there batches have two shapes: `batch_multiple`
    return model


def starting_weights(run: Run) -> Path | None:
    """Finds the file that `--from_weight` means; None for a new model."""
    settings = run.settings.model
    if settings.from_weight == "none":
        return None
    return find_weights(settings.from_weight, run.settings.saving.save_dir, flag="--from_weight",
                        hidden_size=settings.hidden_size, use_moe=settings.use_moe,
                        preset=PRESETS[settings.preset] if settings.preset else None,
                        tokenizer=run.tokenizer.fingerprint)


def new_model_config(settings: ModelSettings, vocab_size: int) -> ModelConfig:
    """`--preset`, or `--hidden_size`, `--num_hidden_layers` and `--use_moe` with MiniMind's proportions."""
    chosen = given_shape(settings)
    base = PRESETS[settings.preset] if settings.preset else None
    if base is None:
        return ModelConfig(**chosen, vocab_size=vocab_size, dropout=settings.dropout)
    if chosen.get("hidden_size", base.hidden_size) != base.hidden_size:
        raise UserError(f"--preset {settings.preset} has hidden_size {base.hidden_size}, "
                        f"--hidden_size says {settings.hidden_size}")
    return replace(base, **chosen, vocab_size=vocab_size, dropout=settings.dropout)


def check_flags(settings: ModelSettings, model: ModelConfig, path: Path) -> None:
    """
    Raises:
        UserError: if a flag says another size than the weights at `path` have.
    """
    check_shape(settings, model, path)
    if settings.preset:
        preset = PRESETS[settings.preset]
        for name in names_of(settings, "shape"):
            has, expected = int(getattr(model, name)), int(getattr(preset, name))
            if expected != has:
                raise UserError(f"--preset {settings.preset} has {name} {expected}, but {path} has {has}")


class Claim(NamedTuple):
    """The outputs that only this run writes to while it lasts."""

    checkpoints: Checkpoints
    outputs: Outputs


@contextmanager
def claim_output(run: Run, model: MiniMindForCausalLM) -> Iterator[Claim]:
    """Gives the run its resume states and files, its own until it ends.

    Raises:
        UserError: if the folder cannot be written to, another run has it, or this run would replace files that another
            one wrote and `--overwrite` is not set.
    """
    settings = run.settings
    out = weights_path(settings.saving.save_dir, settings.saving.save_weight, model.config)
    folder = Path(settings.saving.save_dir) / "checkpoints" / f"{out.stem}_resume"
    outputs = Outputs(out, folder)
    run.ranks.on_main(lambda: check_writable(folder, "--save_dir"))
    # torchrun counts restarts on each machine by itself: one that was restarted speaks for all. A restart after a
    # refusal finds an earlier run's states, which it must not go on from.
    some_go_on, some_resume = run.ranks.largest(int(goes_on(settings.saving)), int(settings.saving.from_resume))
    fresh = not some_go_on or (not some_resume and run.ranks.on_main(outputs.begun_elsewhere))

    def check() -> None:
        outputs.claim(fresh=fresh, overwrite=settings.saving.overwrite, reads=starting_weights(run))

    keep = settings.saving.keep_checkpoints
    with Checkpoints(folder, keep=keep, ranks=run.ranks, fresh=fresh, check=check) as checkpoints:
        if settings.runtime.parallel == "fsdp":
            checkpoints.check_shared()
        if checkpoints.was_set_aside:
            run.say(f"overwrite   the earlier run's resume states moved to {shown(checkpoints.previous)}")
        yield Claim(checkpoints, outputs)


def goes_on(saving: SavingSettings) -> bool:
    """Whether this process is to go on from a resume state: asked to, or started again by torchrun."""
    return saving.from_resume or restarted_by_torchrun()


def train(run: Run, model: MiniMindForCausalLM, train_set: Samples, eval_set: Samples | None,
          evaluate: Callable[[], Evaluation] | None, claim: Claim) -> int:
    """Fits the model to the training set, from its resume state if asked; returns the exit status."""
    settings, ranks = run.settings, run.ranks
    checkpoints, outputs = claim
    keep_freed_memory()
    out = outputs.weights
    identity = run_identity(run, model, train_set, eval_set)
    check_agreement(run, model, identity)
    wrapped = parallelize(model, ranks, settings.runtime.parallel, run.dtype)
    asked = settings.optimizer
    optimizer = build_optimizer(model, asked.learning_rate, asked.weight_decay)
    scaler = torch.amp.GradScaler(ranks.device.type, enabled=run.dtype == torch.float16)
    state = TrainState(samples_per_step=asked.batch_size * asked.accumulation_steps * ranks.world_size,
                       identity=identity, settings=run_settings(run))
    if not checkpoints.fresh:
        state = resume(run, checkpoints, state, model, optimizer, scaler)
    steps = TrainingSteps(train_set, epochs=asked.epochs, samples_per_step=state.samples_per_step,
                          micro_batch_tokens=settings.runtime.micro_batch_tokens, seed=settings.data.seed,
                          rank=ranks.rank, ranks=ranks.world_size, multiple=batch_multiple(run))
    total = planned_steps(asked, steps)
    if ranks.on_main(lambda: nothing_left(state, total, out)):
        run.say(f"{shown(out)}: that run is finished ({state.step} steps); nothing to do")
        return 0
    state.finished = False
    settings_before, state.settings = state.settings, run_settings(run)
    known = base_experience(run)
    for line in (length_of_run(asked, steps.steps_per_epoch, state.samples_per_step),
                 *warmup_advice(asked, total),
                 *evaluation_advice(settings, None if eval_set is None else len(eval_set)),
                 *rate_advice(settings_before, state.settings, state.updates, steps.steps_per_epoch),
                 *data_advice(run, known, train_set)):
        run.say(line)
    experience = known.after(train_set) if known else None

    def write(at: TrainState) -> None:
        unsharded = gather(model, ranks)
        record = sidecar(run, at, total, outputs.run, experience)
        ranks.on_main(lambda: write_weights(out, unsharded, settings.saving.save_dtype, record))

    wandb_run = wandb_of(run, out.stem)
    if replaced := ranks.on_main(outputs.begin):
        run.say(f"overwrite   {', '.join(map(shown, replaced))} moved to {shown(outputs.aside)}")
    if not ranks.on_main(out.exists):
        state.best_eval_loss = None  # the weights that had it are gone
    checkpoints.begin()
    with Progress(outputs.metrics, total_steps=total, step=state.step,
                  is_main=ranks.is_main, log_interval=settings.logging.log_interval, wandb_run=wandb_run) as progress:
        saver = Saver(checkpoints, write, interval=settings.saving.save_interval,
                      keeps_best=settings.saving.keep_best and evaluate is not None)
        learner = Learner(model, wrapped, optimizer, scaler, ranks, run.dtype)
        status = fit(learner, steps, state, settings, progress=progress, saver=saver, evaluate=evaluate)
    if wandb_run is not None:
        wandb_run.finish(exit_code=status)
    if ranks.is_main:
        for line in (*closing_lines(read_metrics(outputs.metrics), progress.effort(state.step), saver.keeps_best),
                     *result_lines(state, out), *next_lines(run.stage, settings, out, outputs.metrics)):
            run.say(line)
    return status


def wandb_of(run: Run, name: str) -> Any:
    """Starts the main rank's Weights & Biases run, if asked for; where it cannot start, no rank goes on."""
    started = []
    logging = run.settings.logging
    if logging.use_wandb:
        run.ranks.on_main(lambda: started.append(start_wandb(logging.wandb_project, name, as_typed(run.settings))))
    return started[0] if started else None


def result_lines(state: TrainState, out: Path) -> list[str]:
    """Reports the steps that made no update, and the weights."""
    lines = []
    if state.bad_steps:
        lines.append(f"skipped     {state.bad_steps} of {state.step} steps: loss or gradient was not finite")
    best = f" (validation loss {state.best_eval_loss:.4f})" if state.best_eval_loss is not None else ""
    return [*lines, f"wrote       {shown(out)}{best} and {shown(sidecar_path(out))}"]


def base_experience(run: Run) -> Experience | None:
    """Reads from their sidecar what the weights of `--from_weight` were trained on; None where it does not say."""
    vocab_size, path = run.tokenizer.vocab_size, starting_weights(run)
    if path is None:
        return Experience.none(vocab_size)
    with suppress(OSError, ValueError):
        return Experience.from_sidecar(read_object(sidecar_path(path)), vocab_size)
    return None


def data_advice(run: Run, known: Experience | None, train_set: Samples) -> list[str]:
    """Notes data that are strange to the weights of `--from_weight`."""
    if known is None or run.settings.model.from_weight == "none":
        return []
    control = map(run.tokenizer.token_to_id, run.tokenizer.control_tokens())
    return strangeness(known, train_set, control, f"--from_weight {run.settings.model.from_weight}")


def nothing_left(state: TrainState, total_steps: int, out: Path) -> bool:
    """Says whether the run to resume is finished already, and its weights are at `out`.

    Raises:
        UserError: if it took more steps than it is now to take, or its weights are gone.
    """
    if state.finished and state.step >= total_steps:
        if not out.exists():
            raise UserError(f"--from_resume 1: that run is finished ({state.step} steps), but {out} is gone")
        return True
    if state.step > total_steps:
        raise UserError(f"--from_resume 1: {state.step} steps are taken already, more than the {total_steps} that "
                        "--epochs and --max_steps ask for")
    return False


def sidecar(run: Run, state: TrainState, total_steps: int, run_id: str | None,
            experience: Experience | None) -> dict[str, Any]:
    """Describes the weights: what they are, and the run that made them."""
    settings = run.settings
    return {
        "stage": run.stage,
        "run": run_id,
        "tokenizer": run.tokenizer.fingerprint,
        "tokenizer_facts": tokenizer_facts(run.tokenizer, settings.data.tokenizer_path),
        "chat_template": run.chat_template,
        "chat_template_facts": (template_facts(run.rows.template, settings.data.chat_template)
                                if isinstance(run.rows, SFTEncoder) else None),
        "training": {
            "command": command_line(),
            "from_weight": settings.model.from_weight,
            "data": {" ".join(map(shown, settings.data.data_path)): state.identity["data"]},
            "step": state.step,
            "total_steps": total_steps,
            "samples_per_step": state.samples_per_step,
            "supervised_tokens": state.supervised_tokens,
            "eval_loss": state.eval_loss,
            "dtype": str(run.dtype).removeprefix("torch."),
            **({"experience": experience.for_sidecar()} if experience else {}),
        },
        "made_with": {"minimind_sft": __version__, "torch": torch.__version__},
    }


def command_line() -> str:
    """Returns the command that started this process, with the program named from the repository's root."""
    return shlex.join(["python", shown(sys.argv[0]), *sys.argv[1:]])
