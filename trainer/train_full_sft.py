"""Fine-tunes a pretrained model on conversations: full supervised fine-tuning.

    python trainer/train_full_sft.py --from_weight pretrain
    torchrun --nproc_per_node 2 trainer/train_full_sft.py --from_weight pretrain --data_path my_conversations.jsonl

Reads out/<from_weight>_<hidden_size>.pth and conversations in any common format (docs/data.md). Learns the assistant's
words and end of turn, and nothing else unless asked. Writes out/<save_weight>_<hidden_size>.pth with a sidecar (.json),
a metrics file, and resume states for --from_resume 1. scripts/inspect_data.py shows beforehand what will be learned.
"""

from functools import partial
from pathlib import Path

import torch

from minimind_sft.data.batching import BatchLayout, EvaluationBatches, TrainingSteps
from minimind_sft.data.chat_template import Supervision, make_template
from minimind_sft.data.loading import load_datasets
from minimind_sft.data.samples import SFTEncoder
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.device import check_compiler, position_multiple, resolve_dtype
from minimind_sft.errors import run_program
from minimind_sft.evaluation.drawing import draw_questions
from minimind_sft.evaluation.during_training import Evaluator
from minimind_sft.inspection.of_run import write_report
from minimind_sft.matching import encoding_facts
from minimind_sft.model.build import find_start
from minimind_sft.model.weights import weights_path, write_weights
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.training import SFTSettings
from minimind_sft.training.advice import data_advice, opening_lines, opening_warnings
from minimind_sft.training.distributed import Ranks, join_ranks
from minimind_sft.training.experience import Experience
from minimind_sft.training.identity import check_agreement, run_identity, run_settings
from minimind_sft.training.learner import Learner
from minimind_sft.training.loggers.loggers import start_loggers
from minimind_sft.training.loop import fit
from minimind_sft.training.metrics import read_metrics
from minimind_sft.training.optim import build_optimizer
from minimind_sft.training.outputs import Outputs, begin_outputs, claim_outputs, describe_run
from minimind_sft.training.parallel import gather, parallelize
from minimind_sft.training.progress import Progress
from minimind_sft.training.resume import end_of_run, resume
from minimind_sft.training.resume_state import TrainState
from minimind_sft.training.run_facts import run_facts
from minimind_sft.training.saving import Saver
from minimind_sft.training.start import starting_model
from minimind_sft.training.summary import closing_lines, next_lines, result_lines
from minimind_sft.training.watch import Watcher


def main() -> int:
    settings = parse_flags(SFTSettings, description=__doc__)
    with join_ranks(settings.runtime.device, settings.runtime.rank_timeout) as ranks:
        return fine_tune(settings, ranks)  # a function, so that its DDP model is gone before the ranks part


def fine_tune(settings: SFTSettings, ranks: Ranks) -> int:
    data, optimizer, runtime, saving = settings.data, settings.optimizer, settings.runtime, settings.saving
    dtype = resolve_dtype(runtime.dtype, ranks.device)
    if runtime.use_compile:
        check_compiler(ranks.device)

    # Tokenizer and template turn a conversation into tokens, and say which of them are learned. The weights to start
    # from bring their own.
    start = find_start(settings.model, saving.save_dir, lambda: load_tokenizer(data.tokenizer_path).fingerprint)
    tokenizer = load_tokenizer(data.tokenizer_path, start)
    template = make_template(tokenizer, data.chat_template, data.end_of_turn)
    encoder = SFTEncoder(template, data.max_seq_len, data.truncation,
                         Supervision(data.train_turns, data.train_on_prompt))
    ranks.say(*(f"template    {note}" for note in template.notes))
    ranks.say(*(f"tokenizer   {notice}" for notice in tokenizer.notices))

    # Model and output files come before the data: a wrong flag should show in seconds, and preparing takes minutes.
    model, family = starting_model(settings, start, tokenizer, template, ranks)
    outputs = Outputs(weights_path(saving.save_dir, saving.save_weight, model.config))
    shared = runtime.parallel == "fsdp"
    with claim_outputs(outputs, saving, ranks, reads=start, shared=shared) as checkpoints:
        # Data: prepared by the first rank of each machine, unless an earlier run has done it.
        prepared = Path(data.prepared_dir or Path(saving.save_dir, "prepared"))
        train_set, eval_set = ranks.first_on_each_machine(
            partial(load_datasets, data, encoder, prepared, ranks.say, show_progress=ranks.is_main))
        identity = run_identity(settings, encoder, model.config, train_set, eval_set)
        check_agreement(identity, settings, model, ranks)

        # The model on all ranks, and what trains it.
        wrapped = parallelize(model, ranks, runtime.parallel, dtype)
        adamw = build_optimizer(model, optimizer.learning_rate, optimizer.weight_decay)
        scaler = torch.amp.GradScaler(ranks.device.type, enabled=dtype == torch.float16)
        learner = Learner(model, wrapped, adamw, scaler, ranks, dtype)

        # Where the run stands: at its beginning, or where its newest resume state was written.
        state = TrainState(samples_per_step=optimizer.batch_size * optimizer.accumulation_steps * ranks.world_size,
                           identity=identity, settings=run_settings(settings, dtype))
        if not checkpoints.fresh:
            state = resume(checkpoints, state, learner, allow_changed_data=saving.allow_changed_data)
        layout = BatchLayout(runtime.micro_batch_tokens, ranks.rank, ranks.world_size,
                             position_multiple(ranks.device, runtime.use_compile, runtime.micro_batch_tokens))
        steps = TrainingSteps(train_set, layout, epochs=optimizer.epochs, samples_per_step=state.samples_per_step,
                              seed=data.seed, max_steps=optimizer.max_steps)
        if ended := ranks.on_main(lambda: end_of_run(state, len(steps), outputs.weights, settings.evaluation)):
            ranks.say(ended)
            return 0
        state.finished = False
        settings_before, state.settings = state.settings, run_settings(settings, dtype)

        known = Experience.of_weights(start, tokenizer.vocab_size)
        experience = known.after(train_set) if known else None
        ranks.say(*opening_lines(settings, settings_before, state, steps, eval_set),
                  *data_advice(known, train_set, tokenizer, f"--from_weight {settings.model.from_weight}"))

        def write(at: TrainState) -> None:
            """Writes the weights as they are now, for use, with a sidecar that describes them."""
            unsharded = gather(model, ranks)
            sidecar = {"stage": "full_sft", "run": outputs.run, "family": family,
                       **encoding_facts(tokenizer, template, data.chat_template),
                       **describe_run(settings, at, len(steps), experience)}
            ranks.on_main(lambda: write_weights(outputs.weights, unsharded, saving.save_dtype, sidecar))

        evaluate = None
        if eval_set is not None:
            questions = draw_questions(eval_set, settings.evaluation, model.config.context, tokenizer, template)
            evaluate = Evaluator(model, EvaluationBatches(eval_set, layout), questions, settings, dtype, ranks)
        saver = Saver(checkpoints, write, interval=saving.save_interval,
                      keeps_best=saving.keep_best and evaluate is not None)
        begin_outputs(outputs, checkpoints, state, ranks)
        facts = run_facts("full_sft", outputs, settings, learner, len(steps), (train_set, eval_set))
        warnings = ranks.on_main(lambda: opening_warnings(settings, len(steps), train_set, eval_set))
        loggers = start_loggers(settings, outputs.weights.stem, outputs.run, state.step, ranks.is_main)
        with Progress(outputs.metrics, total_steps=len(steps), step=state.step, is_main=ranks.is_main,
                      log_interval=settings.logging.log_interval, watcher=Watcher(optimizer, len(steps)),
                      loggers=loggers) as progress:
            progress.log(state.step, run=facts)
            progress.warn(state.step, *warnings)
            status = fit(learner, steps, state, settings, progress=progress, saver=saver, evaluate=evaluate)

        if ranks.is_main:
            effort = progress.effort(state.step)
            ranks.say(*closing_lines(read_metrics(outputs.metrics), effort, saver.keeps_best),
                      *result_lines(state, outputs.weights))
            ranks.say(write_report(outputs.report, outputs.metrics, settings, encoder),
                      *next_lines("full_sft", settings, outputs.weights, outputs.metrics))
        return status


if __name__ == "__main__":
    run_program(main)
