"""Runs lm-evaluation-harness on a model of ours, with the harness's own flags and tasks.

    pip install -e '.[harness]'
    python scripts/run_harness.py --model_args weight=full_sft --tasks arc_easy,hellaswag --output_path results/
    python scripts/run_harness.py --model_args weight=../SmolLM2-135M,lora_weight=style --tasks mmlu --num_fewshot 5
    python scripts/run_harness.py --model_args weight=full_sft --tasks gsm8k --apply_chat_template
    python scripts/run_harness.py ls tasks

--model_args takes the flags of eval_llm.py that choose weights and device, without their dashes, and max_length, if the
model should read less than its context. --batch_size is the number of prompts that are answered at once.
"""

import sys

from minimind_sft.errors import UserError, one_line, run_program
from minimind_sft.evaluation.harness import NAME, register
from minimind_sft.terminal import say

OWN_COMMANDS = ("ls", "validate")
"""Commands of the harness that need no model."""


def main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        say(__doc__)
    if _has(arguments, "--model", "-M"):
        raise UserError(f"--model: this program runs the model {NAME}; --model_args weight=NAME says which weights")
    register()
    from lm_eval.__main__ import cli_evaluate

    if arguments and arguments[0] not in OWN_COMMANDS:
        command = 1 + (arguments[0] == "run")
        # The harness's own defaults are a GPU, even where there is none, and one prompt at a time.
        device = [] if _has(arguments, "--device", "--config", "-C") else ["--device", "auto"]
        batch = [] if _has(arguments, "--batch_size", "-b", "--config", "-C") else ["--batch_size", "32"]
        sys.argv[command:command] = ["--model", NAME, *device, *batch]
    try:
        cli_evaluate()
    except ValueError as error:
        if not str(error).startswith("Tasks not found"):
            raise
        raise UserError(f"--tasks: {one_line(error)}; python scripts/run_harness.py ls tasks lists them") from error


def _has(arguments: list[str], *flags: str) -> bool:
    return any(argument.partition("=")[0] in flags for argument in arguments)


if __name__ == "__main__":
    run_program(main)
