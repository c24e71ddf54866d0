"""Fine-tunes a pretrained model on conversations: full supervised fine-tuning.

    python trainer/train_full_sft.py --from_weight pretrain
    torchrun --nproc_per_node 2 trainer/train_full_sft.py --from_weight pretrain --data_path my_conversations.jsonl

Reads out/<from_weight>_<hidden_size>.pth and conversations in any common form (docs/data.md); learns the assistant's
words and end of turn, nothing else unless asked; writes out/<save_weight>_<hidden_size>.pth with its sidecar (.json), a
metrics file, and resume states for --from_resume 1. scripts/inspect_data.py shows beforehand what will be learned.
"""

from functools import partial

from minimind_sft.data.chat_template import Supervision, make_template
from minimind_sft.data.samples import SFTEncoder
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.errors import run_program
from minimind_sft.inference.evaluate import validation_loss
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.training import SFTSettings
from minimind_sft.training.distributed import join_ranks
from minimind_sft.training.run import Run
from minimind_sft.training.setup import claim_output, evaluation_share, load_datasets, starting_model, train


def main() -> int:
    settings = parse_flags(SFTSettings, description=__doc__)
    with join_ranks(settings.runtime.device, settings.runtime.rank_timeout) as ranks:
        data = settings.data
        tokenizer = load_tokenizer(data.tokenizer_path)
        template = make_template(tokenizer, data.chat_template, data.end_of_turn)
        rows = SFTEncoder(template, data.max_seq_len, data.truncation,
                       Supervision(data.train_turns, data.train_on_prompt))
        run = Run("full_sft", settings, ranks, rows)
        for note in template.notes:
            run.say(f"template    {note}")

        model = starting_model(run)
        with claim_output(run, model) as claim:
            train_set, eval_set = load_datasets(run)
            evaluate = None
            if eval_set is not None:
                evaluate = partial(validation_loss, model, evaluation_share(run, eval_set), ranks.device, run.dtype,
                                   ranks.sum)
            return train(run, model, train_set, eval_set, evaluate, claim)


if __name__ == "__main__":
    run_program(main)
