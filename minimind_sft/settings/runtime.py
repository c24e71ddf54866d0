"""Settings of the runtime: on which device, in which precision, with how much memory."""

import os
from dataclasses import dataclass

from minimind_sft.settings.spec import MAX_COUNT, setting

DTYPES = ("auto", "float32", "bfloat16", "float16")

DEVICE_HELP = "auto (CUDA if available, else an Apple GPU, else the CPU), cpu, cuda, cuda:N or mps"


@dataclass(frozen=True)
class RuntimeSettings:
    """Where the run computes, and how; apart from --dtype this affects only speed and memory."""

    device: str = setting("auto", DEVICE_HELP, decides="machine")
    dtype: str = setting(
        "auto", "precision of the matrix products; auto: bfloat16 if the hardware multiplies it, else float32; "
                "float16 uses a GradScaler", choices=DTYPES)
    micro_batch_tokens: int = setting(
        4096, "maximum tokens in one forward pass; affects memory and speed, never the result")
    use_compile: bool = setting(
        False, "compile every layer with torch.compile: a slow start, then faster steps (by a few percent on a CPU)")
    gradient_checkpointing: bool = setting(
        False, "store only the input of each layer and compute the rest again for the gradients: less memory, one more "
               "forward pass")
    parallel: str = setting(
        "ddp", "under torchrun: ddp keeps the whole model on every rank, fsdp a shard of it (all ranks must share "
               "--save_dir)", choices=("ddp", "fsdp"))
    rank_timeout: float = setting(600.0, "seconds that a rank waits for the others before it gives up", min=1,
                                  max=MAX_COUNT)
    local_rank: int = setting(
        -1, "set by torch.distributed.launch; must equal the environment variable LOCAL_RANK, which the run uses",
        decides="machine")
    num_workers: int = setting(
        0, "worker processes that assemble batches; 0: the training process itself", min=0, max=1024,
        decides="machine")

    def problems(self) -> list[str]:
        in_environment = os.environ.get("LOCAL_RANK", "0")
        if self.local_rank == -1 or str(self.local_rank) == in_environment:
            return []
        return [f"--local_rank is {self.local_rank}, but the environment's LOCAL_RANK is {in_environment}: "
                "torchrun starts several ranks and sets it"]


def room_problems(micro_batch_tokens: int, max_seq_len: int) -> list[str]:
    """Says that a micro-batch has no room for the longest document, if so."""
    if micro_batch_tokens >= max_seq_len:
        return []
    return [f"--micro_batch_tokens {micro_batch_tokens} is below --max_seq_len {max_seq_len}: a document is never "
            "split over micro-batches"]
