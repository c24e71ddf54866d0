"""Trains a new model on plain text: every token is predicted from those before it.

    python trainer/train_pretrain.py --preset 26m --data_path my_text.jsonl
    torchrun --nproc_per_node 2 trainer/train_pretrain.py --hidden_size 768 --data_path my_text.jsonl

Reads rows {"text": ...}, chunked at --max_seq_len; writes out/<save_weight>_<hidden_size>.pth with its sidecar
(.json), a metrics file, and resume states for --from_resume 1. trainer/train_full_sft.py makes a chat model of it.
"""

from functools import partial

from minimind_sft.data.samples import PretrainEncoder
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.errors import run_program
from minimind_sft.inference.evaluate import validation_loss
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.training import PretrainSettings
from minimind_sft.training.distributed import join_ranks
from minimind_sft.training.run import Run
from minimind_sft.training.setup import claim_output, evaluation_share, load_datasets, starting_model, train


def main() -> int:
    settings = parse_flags(PretrainSettings, description=__doc__)
    with join_ranks(settings.runtime.device, settings.runtime.rank_timeout) as ranks:
        tokenizer = load_tokenizer(settings.data.tokenizer_path)
        run = Run("pretrain", settings, ranks, PretrainEncoder(tokenizer, settings.data.max_seq_len))

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
