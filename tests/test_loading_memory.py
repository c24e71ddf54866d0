"""Loading a model takes at most 1.3 times its float32 bytes, with mapped pages, whatever format its weights have."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from minimind_sft.export.safetensors_writer import write_shards
from minimind_sft.model.config import ModelConfig
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.families.registry import FAMILIES

pytestmark = [pytest.mark.slow,
              pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")]

# The embedding is a third of it. A quarter, what a copy in bfloat16 would take, is far more than the noise.
LARGE = ModelConfig(vocab_size=10_000, hidden_size=512, num_hidden_layers=4)

MEASURE = """
import ctypes, json, sys
from pathlib import Path
from minimind_sft.model.weights import read_weights

def status(field):
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024

read_weights(Path(sys.argv[1])).build_model()  # whatever the first time takes besides
shares = {}
for path in sys.argv[1:]:
    ctypes.CDLL(None).malloc_trim(0)  # what the last model left
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = status("VmRSS")
    model = read_weights(Path(path)).build_model()
    shares[path] = (status("VmHWM") - before) / sum(parameter.nbytes for parameter in model.parameters())
    del model
print(json.dumps(shares))
"""


def test_loading_takes_little_more_than_the_model(tmp_path):
    torch.manual_seed(0)
    tensors = {name: tensor.clone() for name, tensor in MiniMindForCausalLM(LARGE).state_dict().items()
               if name != "lm_head.weight"}
    paths: list[Path] = []
    for dtype, shard_bytes in (("bfloat16", 2**30), ("float32", 2**20)):
        folder, stored_in = tmp_path / dtype, getattr(torch, dtype)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(FAMILIES["qwen3"].write_config(LARGE)))
        write_shards(folder, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, dtype,
                     lambda name, stored_in=stored_in: tensors[name].to(stored_in), shard_bytes)
        paths.append(folder)
    for dtype in ("float16", "float32"):
        paths.append(tmp_path / f"{dtype}.pth")
        torch.save({name: tensor.to(getattr(torch, dtype)) for name, tensor in tensors.items()}, paths[-1])
    save_file({name: tensor.half() for name, tensor in tensors.items()}, tmp_path / "b.safetensors")
    paths.append(tmp_path / "b.safetensors")
    done = subprocess.run([sys.executable, "-c", MEASURE, *map(str, paths)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    shares = json.loads(done.stdout)
    assert all(0.9 < share < 1.3 for share in shares.values()), shares
