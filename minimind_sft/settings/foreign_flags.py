"""Explains flags of other programs: all versions of MiniMind, Hugging Face, TRL and LLaMA-Factory."""

from collections.abc import Collection
from difflib import get_close_matches
from pathlib import Path

OURS = {
    "--data_path": ("dataset", "dataset_name", "train_file", "train_data", "data"),
    "FILE (without a flag)": ("data_path", "data", "files", "input"),
    "--eval_data_path": ("validation_file", "eval_file", "eval_dataset", "val_data"),
    "--eval_share": ("val_size", "test_size", "validation_split_percentage"),
    "--from_weight": ("model_name_or_path", "model_name", "model_path", "model", "init_from", "weight"),
    "--weight": ("model_name_or_path", "model_name", "model_path", "model", "from_weight"),
    "--tokenizer_path": ("tokenizer_name", "tokenizer_name_or_path", "tokenizer"),
    "--chat_template": ("template", "chat_template_path"),
    "--save_dir": ("output_dir", "out_dir"),
    "--out": ("output", "output_file", "output_path"),
    "--output": ("out", "outfile", "output_dir", "output_path", "output_file"),
    "--to": ("format", "to_format", "output_format"),
    "--overwrite 1": ("overwrite_output_dir",),
    "--from_resume 1": ("resume_from_checkpoint", "resume"),
    "--hidden_size": ("dim", "n_embd", "d_model"),
    "--num_hidden_layers": ("n_layers", "n_layer", "num_layers"),
    "--epochs": ("num_train_epochs", "num_epochs"),
    "--max_steps": ("max_iters",),
    "--batch_size": ("per_device_train_batch_size", "train_batch_size", "micro_batch_size"),
    "--micro_batch_tokens, in tokens": ("per_device_eval_batch_size", "eval_batch_size"),
    "--accumulation_steps": ("gradient_accumulation_steps",),
    "--max_seq_len": ("max_length", "max_seq_length", "cutoff_len", "block_size"),
    "--cache_tokens, of all requests together": ("ctx_size", "max_model_len", "max_seq_len"),
    "--max_running": ("max_num_seqs", "parallel", "n_parallel"),
    "--max_waiting": ("max_queue_size",),
    "--models NAME=WEIGHT+ADAPTER": ("lora_modules",),
    "--served_name": ("served_model_name", "alias"),
    "--allow_origin": ("allowed_origins", "cors"),
    "--max_new_tokens": ("max_length", "max_tokens", "max_gen_len"),
    "--learning_rate": ("lr",),
    "--schedule": ("lr_scheduler_type", "lr_scheduler", "lr_decay_style"),
    "--min_lr_ratio, a share of --learning_rate": ("min_lr",),
    "--warmup_steps": ("warmup_iters",),
    "--warmup_steps, in steps": ("warmup_ratio",),
    "--grad_clip": ("max_grad_norm",),
    "--dtype bfloat16": ("bf16",),
    "--dtype float16": ("fp16",),
    "--dtype float32": ("fp32",),
    "--dtype": ("torch_dtype", "precision", "outtype"),
    "--use_compile 1": ("torch_compile", "compile"),
    "--num_workers": ("dataloader_num_workers",),
    "--log_interval": ("logging_steps",),
    "--eval_interval": ("eval_steps",),
    "--best_by": ("metric_for_best_model",),
    "--keep_best 1": ("load_best_model_at_end",),
    "--early_stop_patience": ("early_stopping_patience", "early_stopping"),
    "--save_interval": ("save_steps",),
    "--keep_checkpoints": ("save_total_limit",),
    "--loggers": ("report_to",),
    "--loggers swanlab": ("use_swanlab",),
    "--historys": ("history_cnt",),
    "--lora_name": ("save_weight", "adapter_name"),
    "--lora_rank": ("lora_r", "rank"),
    "--target_modules": ("lora_target", "lora_target_modules"),
    "--from_lora": ("adapter_name_or_path",),
    "--quantize nf4": ("load_in_4bit", "quantization_bit"),
    "--train_on_prompt 0": ("assistant_only_loss", "completion_only_loss"),
}
"""Our flag, and what others call it. A program suggests only flags that it has."""

NOT_HERE = {
    "trainer/train_lora.py trains adapters":
        ("lora_name", "lora_r", "lora_rank", "lora_alpha", "lora_target", "lora_target_modules", "use_peft",
         "finetuning_type", "load_in_4bit", "load_in_8bit"),
    "preference optimisation and reinforcement learning are not here yet":
        ("beta", "num_generations", "reward_model_path", "loss_type", "epsilon", "epsilon_high", "clip_epsilon",
         "kl_coef", "vf_coef", "gamma", "lam", "cliprange_value", "critic_learning_rate", "ppo_update_iters",
         "early_stop_kl", "mini_batch_size", "update_old_actor_freq", "max_gen_len", "max_total_len", "thinking_ratio",
         "rollout_engine", "sglang_base_url", "sglang_model_path", "sglang_shared_path", "debug_mode",
         "debug_interval", "debug_log_ratio"),
    "distillation is not here yet":
        ("alpha", "teacher_hidden_size", "teacher_num_layers", "teacher_use_moe", "from_teacher_weight",
         "student_hidden_size", "student_num_layers", "student_use_moe", "from_student_weight"),
    "scripts/serve_openai_api.py serves models over OpenAI's interface": ("api_key", "host", "port"),
    "models of other servers are not asked from here": ("backend", "api_base_url", "api_model"),
    "reasoning is learned from the rows that have it (reasoning_content, or <think> in an answer)": ("reasoning",),
    "torchrun says how many ranks there are, without a flag": ("ddp",),
    "--weight says which weights: a name, pretrain or full_sft, or a path": ("load", "model_mode"),
    "an answer always streams": ("stream",),
    "documents are always laid end to end without padding": ("packing", "padding_free"),
    "the optimizer is always AdamW": ("optim",),
}
"""The reason why a flag of theirs does not exist here."""


def explanation(name: str, flags: Collection[str]) -> str:
    """Explains an unknown flag `--<name>`: what it is called here, why it does not exist, or which of `flags` it
    resembles; "" if nothing is known."""
    for ours, theirs in OURS.items():
        if name in theirs and ours.split()[0].rstrip(",") in flags:
            return f"here it is {ours}"
    for reason, theirs in NOT_HERE.items():
        if name in theirs:
            return reason
    names = [flag.removeprefix("--") for flag in flags if flag.startswith("--")]
    likely = (get_close_matches(name.lower(), names, n=1, cutoff=0.7)
              or [other for other in names if other.startswith(name.lower())])
    return f"did you mean --{likely[0]}?" if likely else ""


def holds_model(load_from: str) -> bool:
    """Whether `--load_from` names a whole model: a folder in transformers' format, or a GGUF file.

    In MiniMind, a folder without weights is that of the tokenizer.
    """
    path = Path(load_from)
    return path.is_file() or any(path.glob("*.safetensors")) or any(path.glob("pytorch_model*.bin"))


def load_from_problems(load_from: str | None, weight: str, tokenizer_path: str | None) -> list[str]:
    """Lists what is wrong with `--load_from`, which stands for `--weight` or `--tokenizer_path`."""
    if not load_from:
        return []
    if not Path(load_from).exists():
        return [f"--load_from {load_from}: no such folder"]
    flag, other, what = (("--weight", weight, "the weights") if holds_model(load_from) else
                         ("--tokenizer_path", tokenizer_path, "the tokenizer's folder"))
    if other == load_from:
        return []
    return [f"--load_from {load_from} and {flag} {other} both name {what}: give one of them"]
