"""Answers prompts for serve_speed.py, in a process of its own:

    python serve_contenders.py KIND WEIGHTS PRECISION THREADS

KIND is engine (inference/engine.py), batch (generate_batch, of whichever checkout is on PYTHONPATH) or transformers
(WEIGHTS is a Hugging Face folder then). Reads lines {prompts, new_tokens} and writes {seconds, cpu_seconds, answers}
for each. Given {per_second, max_running} too, the engine's prompts arrive at random, and it writes when tokens came.
"""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

Answers = list[list[int]]


class Contender:
    """A process that answers prompts; it waits, without a load, until it is asked."""

    def __init__(self, command: list[str | Path], checkout: Path | None = None):
        environment = dict(os.environ, PYTHONPATH=str(checkout)) if checkout else dict(os.environ)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                         env=environment)
        self._read()

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self._process.args}: ended with status {self._process.wait()}")


def by_engine(model: Any, prompts: Answers, new_tokens: int) -> Answers:
    from minimind_sft.inference.engine import PAGE, Engine
    from minimind_sft.inference.request import Request
    from minimind_sft.settings.chat import SamplingSettings

    pages = sum(-(-(len(prompt) + new_tokens) // PAGE) for prompt in prompts)
    engine = Engine(model, len(prompts), cache_tokens=pages * PAGE)
    requests = [Request(prompt, SamplingSettings(new_tokens, temperature=0.0)) for prompt in prompts]
    answers: dict[Request, list[int]] = {request: [] for request in requests}
    for request in requests:
        engine.add(request)
    while engine.running or engine.waiting:
        for request, tokens in engine.step().items():
            answers[request] += [token.id for token in tokens]
    return list(answers.values())


def by_batch(model: Any, prompts: Answers, new_tokens: int) -> Answers:
    from minimind_sft.inference.generate import generate_batch
    from minimind_sft.settings.chat import SamplingSettings

    return generate_batch(model, prompts, SamplingSettings(new_tokens, temperature=0.0), ())


def by_transformers(model: Any, prompts: Answers, new_tokens: int) -> Answers:
    prompt_ids = torch.tensor(prompts)
    with torch.inference_mode():
        ids = model.generate(prompt_ids, attention_mask=torch.ones_like(prompt_ids), do_sample=False,
                             max_new_tokens=new_tokens, min_new_tokens=new_tokens, pad_token_id=0, eos_token_id=None)
    return ids[:, prompt_ids.shape[1]:].tolist()


def arrivals(model: Any, prompts: Answers, new_tokens: int, per_second: float, max_running: int) -> dict[str, Any]:
    """Adds prompts to an engine at random times. Returns each one's seconds to its first token, and between tokens."""
    from minimind_sft.inference.engine import Engine
    from minimind_sft.inference.request import Request
    from minimind_sft.settings.chat import SamplingSettings

    draw = random.Random(0)
    engine = Engine(model, max_running)
    times = [0.0]
    while len(times) < len(prompts):
        times.append(times[-1] + draw.expovariate(per_second))
    waiting = list(zip(times, prompts, strict=True))
    came: dict[Request, list[float]] = {}
    start = time.perf_counter()
    while waiting or engine.running or engine.waiting:
        now = time.perf_counter() - start
        while waiting and waiting[0][0] <= now:
            arrived, prompt = waiting.pop(0)
            request = Request(prompt, SamplingSettings(new_tokens, temperature=0.0))
            came[request] = [arrived]
            engine.add(request)
        if not engine.running and not engine.waiting:
            time.sleep(max(waiting[0][0] - now, 0.0))
            continue
        step = engine.step()
        now = time.perf_counter() - start
        for request, tokens in step.items():
            came[request] += [now] * len(tokens)
    return {"first": [each[1] - each[0] for each in came.values()], "seconds": time.perf_counter() - start,
            "between": [after - before for each in came.values() for before, after in pairwise(each[1:])]}


def load(kind: str, weights: Path, precision: torch.dtype) -> Any:
    """Returns a model with weights in `precision`. Those in float16 are multiplied in float32."""
    dtype = torch.float32 if precision == torch.float16 else precision
    if kind == "transformers":
        from transformers import AutoModelForCausalLM

        return AutoModelForCausalLM.from_pretrained(weights, dtype=dtype).eval()
    from minimind_sft.inference.lowering import ready_to_decode
    from minimind_sft.model.weights import read_weights

    return ready_to_decode(read_weights(weights).build_model().to(precision).to(dtype).eval())


def main(kind: str, weights: str, precision: str, threads: str) -> None:
    torch.set_num_threads(int(threads))
    model = load(kind, Path(weights), getattr(torch, precision))
    answers: Callable[..., Answers] = {"engine": by_engine, "batch": by_batch, "transformers": by_transformers}[kind]
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if "per_second" in request:
            print(json.dumps(arrivals(model, **request)), flush=True)
            continue
        start, start_cpu = time.perf_counter(), time.process_time()
        given = answers(model, **request)
        print(json.dumps({"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - start_cpu,
                          "answers": given}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
