"""Training speed: ours beside TRL's SFTTrainer, on the same rows, weights and hyperparameters, in one run.

    python benchmarks/train_speed.py alpaca_zh_10k.json --tokenizer_path minimind --json docs/train_speed.json \\
        --plot docs/train_speed.png
    python benchmarks/train_speed.py --skip_peers --switched_off

The work: 192 conversations of at most 340 tokens, 16 per optimizer step, a model of 512 x 8 (30.0M parameters). TRL is
given our ids and labels, so that both train on the same tokens, and transformers' Qwen3 with a copy of the weights.

1. The losses of the first steps are compared, in float32.
2. TRL is searched for its best configuration: padded and packed, float32 and bfloat16, several batch sizes.
3. Its best, its best at our number of tokens per optimizer step, and ours take turns, `--repeat` times; the medians
   count. Useful tokens are those of the conversations; padding counts for nobody.
4. With `--switched_off`, ours also takes each step without each of its ideas (benchmarks/train_variants.py).

The ceiling is how fast this machine multiplies matrices in the same run (benchmarks/peak.py), at 6 FLOP per parameter
and useful token.
"""

import argparse
import copy
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from peak import matmul_peak, model_shapes
from peers import qwen3_twin
from tqdm import tqdm
from train_variants import VARIANTS, switched_off

from minimind_sft.config import ModelConfig, in_repository
from minimind_sft.data.batching import TrainingSteps
from minimind_sft.data.chat_template import make_template
from minimind_sft.data.dataset import ExampleDataset
from minimind_sft.data.prepared import prepare
from minimind_sft.data.rows import SFTRows
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.device import position_multiple, resolve_device
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.loop import train_step
from minimind_sft.training.optim import BETAS, build_optimizer

LEARNING_RATE, WEIGHT_DECAY, GRAD_CLIP = 5e-4, 0.1, 1.0
MAX_SEQ_LEN = 340
CONVERSATIONS_PER_STEP = 16
MICRO_BATCH_TOKENS = 4096
SEARCH_STEPS = 3
LOSSES_AGREE = 1e-3


@dataclass(frozen=True)
class Work:
    """What everybody trains on, in this order."""

    model: MiniMindForCausalLM
    dataset: ExampleDataset
    device: torch.device

    def steps(self) -> TrainingSteps:
        return TrainingSteps(self.dataset, epochs=1, samples_per_step=CONVERSATIONS_PER_STEP,
                             micro_batch_tokens=MICRO_BATCH_TOKENS, seed=0,
                             multiple=position_multiple(self.device, False, MICRO_BATCH_TOKENS))

    def documents(self, steps: int) -> list[dict[str, list[int]]]:
        """The ids and labels of the first steps' conversations, as TRL takes them: labels not shifted."""
        plan = self.steps()
        return [{"input_ids": example.input_ids.tolist(), "labels": [-100, *example.labels.tolist()[:-1]]}
                for step in range(steps) for sample in plan.sample_ids(step) for example in self.dataset[sample]]

    def tokens(self, steps: int) -> int:
        plan = self.steps()
        return sum(sum(self.dataset.lengths(sample)) for step in range(steps) for sample in plan.sample_ids(step))


@dataclass
class Ours:
    """A training of ours that can be continued for some steps at a time."""

    name: str
    dtype: torch.dtype
    compiled: bool = False
    without: str | None = None
    """The idea of `VARIANTS` that is switched off."""
    losses: list[float] = field(default_factory=list)

    def start(self, work: Work) -> None:
        self.work, self.plan = work, work.steps()
        self.ranks = Ranks(0, 1, work.device)
        self.model = copy.deepcopy(work.model).train()
        if self.compiled:
            for layer in self.model.model.layers:
                layer.compile(dynamic=True)
        self.optimizer = build_optimizer(self.model, LEARNING_RATE, WEIGHT_DECAY)
        self.scaler = torch.amp.GradScaler(work.device.type, enabled=False)

    def run(self, steps: int, first: int = 0) -> float:
        """Seconds for `steps` steps' data from the `first` on, assembling the batches included."""
        with switched_off(self.without, self.optimizer):
            start = time.perf_counter()
            for step in range(first, first + steps):
                result = train_step(self.model, self.plan[step], self.optimizer, self.scaler, self.ranks, self.dtype,
                                    GRAD_CLIP)
                self.losses.append(result.loss)
            return time.perf_counter() - start


@dataclass
class Theirs:
    """TRL's SFTTrainer: `batch` rows, `accumulate` times per optimizer step."""

    packed: bool
    dtype: torch.dtype
    batch: int
    accumulate: int = 1
    losses: list[float] = field(default_factory=list)

    @property
    def name(self) -> str:
        rows = f"{self.batch} x {self.accumulate}" if self.accumulate > 1 else str(self.batch)
        return f"TRL, {'packed' if self.packed else 'padded'}, {rows} rows a step, {short(self.dtype)}"

    def start(self, work: Work) -> None:
        self.work = work

    def run(self, steps: int) -> float:
        """As `Ours.run`, in a trainer of its own that starts from the common weights; its making is not timed."""
        import datasets
        from transformers import PrinterCallback, TrainerCallback
        from trl import SFTConfig, SFTTrainer

        datasets.disable_progress_bars()

        class Clock(TrainerCallback):
            seconds = 0.0

            def on_train_begin(self, *_, **__):
                self.seconds -= time.perf_counter()

            def on_train_end(self, *_, **__):
                self.seconds += time.perf_counter()

        with tempfile.TemporaryDirectory() as folder:
            settings = SFTConfig(
                output_dir=folder, report_to="none", save_strategy="no", disable_tqdm=True, logging_steps=1,
                use_cpu=self.work.device.type == "cpu", bf16=self.dtype == torch.bfloat16, num_train_epochs=1,
                per_device_train_batch_size=self.batch, gradient_accumulation_steps=self.accumulate,
                packing=self.packed, max_length=MAX_SEQ_LEN, gradient_checkpointing=False,
                learning_rate=LEARNING_RATE, lr_scheduler_type="constant", weight_decay=WEIGHT_DECAY,
                adam_beta1=BETAS[0], adam_beta2=BETAS[1], max_grad_norm=GRAD_CLIP, optim="adamw_torch_fused",
                train_sampling_strategy="sequential", dataloader_pin_memory=False, log_level="error",
            )
            clock = Clock()
            trainer = SFTTrainer(qwen3_twin(self.work.model), args=settings,
                                 train_dataset=datasets.Dataset.from_list(self.work.documents(steps)),
                                 processing_class=self.tokenizer(), callbacks=[clock])
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            self.losses += [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return clock.seconds

    def tokenizer(self):
        """Only there because SFTTrainer wants one: the data are ids already."""
        from transformers import AutoTokenizer

        return AutoTokenizer.from_pretrained(in_repository("model"))

    @property
    def has_our_step(self) -> bool:
        """Whether an optimizer step takes (about) as many tokens as ours."""
        return self.batch * self.accumulate == CONVERSATIONS_PER_STEP or (self.packed and self.batch == 5)


def short(dtype: torch.dtype) -> str:
    return {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]


def trl_configurations(dtypes: list[torch.dtype]) -> list[Theirs]:
    """Rows of at most 340 tokens: five packed ones hold about the tokens of 16 conversations."""
    shapes = [(False, 16, 1), (False, 4, 4), (False, 4, 1), (True, 5, 1), (True, 3, 1), (True, 2, 1)]
    return [Theirs(packed, dtype, batch, accumulate) for dtype in dtypes for packed, batch, accumulate in shapes]


def compare_losses(ours: Ours, theirs: Theirs) -> float:
    """The largest difference of the first steps' losses, which must not exceed 1e-3."""
    worst = max(abs(a - b) for a, b in zip(ours.losses[:SEARCH_STEPS], theirs.losses[:SEARCH_STEPS], strict=True))
    print(f"losses of the first {SEARCH_STEPS} steps in fp32: ours "
          f"{', '.join(f'{loss:.4f}' for loss in ours.losses[:SEARCH_STEPS])}; TRL's at most {worst:.1e} apart")
    if worst > LOSSES_AGREE:
        raise SystemExit(f"the losses are {worst:.1e} apart: these are not the same trainings")
    return worst


def search(configurations: list[Theirs], work: Work) -> tuple[Theirs, Theirs, dict[str, float]]:
    """TRL's fastest configuration, its fastest with our tokens per step, and tokens/s of all that were tried."""
    rates = {}
    for theirs in tqdm(configurations, desc="TRL's best", unit=" configurations"):
        theirs.start(work)
        rates[theirs.name] = work.tokens(SEARCH_STEPS) / theirs.run(SEARCH_STEPS)
    for name, rate in rates.items():
        print(f"  {name:<44}{rate:>8,.0f} useful tokens/s")
    best = max(configurations, key=lambda theirs: rates[theirs.name])
    same = max((theirs for theirs in configurations if theirs.has_our_step), key=lambda theirs: rates[theirs.name])
    return best, same, rates


def take_turns(contenders: list[Ours | Theirs], work: Work, steps: int, repeat: int,
               peak: Callable[[], dict[str, float]]) -> tuple[dict[str, list[float]], list[dict[str, float]]]:
    """Useful tokens/s of each contender in every round, and the ceilings measured in every round."""
    rates: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    peaks, tokens = [], work.tokens(steps)
    with tqdm(total=repeat * len(contenders), unit=" runs") as bar:
        for turn in range(repeat):
            peaks.append(peak())
            first = turn % len(contenders)  # whoever follows the measurement of the peak finds the caches cold
            for contender in contenders[first:] + contenders[:first]:
                bar.set_description(contender.name)
                rates[contender.name].append(tokens / contender.run(steps))
                bar.update()
    return rates, peaks


def summary(contenders: list[Ours | Theirs], rates: dict[str, list[float]], peaks: list[dict[str, float]],
            parameters: int) -> dict[str, dict]:
    ceiling = {name: statistics.median(peak[name] for peak in peaks) for name in peaks[0]}
    rows = {}
    for contender in contenders:
        of = rates[contender.name]
        rate, dtype = statistics.median(of), short(contender.dtype)
        rows[contender.name] = {
            "useful_tokens_per_second": round(rate, 1), "least": round(min(of), 1), "most": round(max(of), 1),
            "dtype": dtype, "share_of_matmul_peak": round(6 * parameters * rate / ceiling[dtype], 3),
        }
    return rows


def print_table(rows: dict[str, dict], references: list[str]) -> None:
    """`references`: TRL's best, and its best with our tokens per step; the last columns are ratios to them."""
    headings = ["x TRL's best", "x at our step"][:len(references)]
    print(f"\n{'':<44}{'tokens/s':>9}{'spread':>14}{'of peak':>9}" + "".join(f"{h:>15}" for h in headings))
    for name, row in rows.items():
        ratios = "".join(f"{row['useful_tokens_per_second'] / rows[reference]['useful_tokens_per_second']:>14.2f}x"
                         for reference in references)
        spread = f"{row['least']:,.0f}-{row['most']:,.0f}"
        print(f"{name:<44}{row['useful_tokens_per_second']:>9,.0f}{spread:>14}{row['share_of_matmul_peak']:>9.2f}{ratios}")


def common_work(arguments: argparse.Namespace, folder: Path) -> Work:
    tokenizer = Tokenizer.from_folder(arguments.tokenizer_path)
    rows = SFTRows(make_template(tokenizer), MAX_SEQ_LEN)
    prepared = prepare([arguments.file], rows, folder, "skip", True, print)
    wanted = arguments.steps * CONVERSATIONS_PER_STEP
    if len(prepared) < wanted:
        raise SystemExit(f"{arguments.file}: {len(prepared)} usable rows, expected at least {wanted} (--steps)")
    torch.manual_seed(0)
    model = MiniMindForCausalLM(ModelConfig(
        vocab_size=tokenizer.vocab_size, hidden_size=arguments.hidden_size,
        num_hidden_layers=arguments.num_hidden_layers))
    device = resolve_device(arguments.device)
    return Work(model.to(device), prepared.select(prepared.epoch_order(seed=0, epoch=0)[:wanted]), device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, nargs="?", default=Path(in_repository("dataset/sft_demo.jsonl")),
                        help="conversations to train on (default: the bundled ones, which are short)")
    parser.add_argument("--tokenizer_path", default=in_repository("model"), help="tokenizer folder")
    parser.add_argument("--hidden_size", type=int, default=512)
    parser.add_argument("--num_hidden_layers", type=int, default=8)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--steps", type=int, default=12, help="optimizer steps in each turn (default: 12)")
    parser.add_argument("--repeat", type=int, default=5, help="turns of each contender (default: 5)")
    parser.add_argument("--skip_peers", action="store_true", help="leave TRL out")
    parser.add_argument("--skip_compile", action="store_true", help="leave torch.compile out (it takes a minute)")
    parser.add_argument("--switched_off", action="store_true", help="also run ours without each of its ideas")
    parser.add_argument("--json", type=Path, help="write the figures here")
    parser.add_argument("--plot", type=Path, help="draw them here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(arguments, common_work(arguments, Path(folder)))
    if arguments.json:
        arguments.json.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if arguments.plot:
        from train_speed_plot import draw

        draw(report, arguments.plot)


def measure(arguments: argparse.Namespace, work: Work) -> dict:
    bf16, fp32 = torch.bfloat16, torch.float32
    parameters = sum(parameter.numel() for parameter in work.model.parameters())
    report = {"command": "python benchmarks/train_speed.py " + " ".join(sys.argv[1:]),
              "torch": torch.__version__, "machine": platform.machine(),
              "threads": torch.get_num_threads(), "device": str(work.device), "parameters": parameters,
              "tokens_per_step": work.tokens(arguments.steps) / arguments.steps, "repeat": arguments.repeat}
    contenders: list[Ours | Theirs] = [Ours("ours, bf16", bf16), Ours("ours, fp32", fp32)]
    if not arguments.skip_compile:
        contenders.insert(0, Ours("ours, bf16, compiled", bf16, compiled=True))
    for contender in contenders:
        contender.start(work)
        seconds = contender.run(SEARCH_STEPS)
        print(f"{contender.name}: first {SEARCH_STEPS} steps {seconds:.1f} s")
    references = []
    if not arguments.skip_peers:
        configurations = trl_configurations([bf16, fp32])
        best, same, report["trl_search"] = search(configurations, work)
        plain = next(theirs for theirs in configurations if theirs.dtype == fp32 and theirs.has_our_step
                     and not theirs.packed)
        report["losses_apart"] = compare_losses(contenders[-1], plain)
        contenders += [best] if best is same else [best, same]
        references = list(dict.fromkeys((best.name, same.name)))
    shapes = model_shapes(work.model.config)

    def peak() -> dict[str, float]:
        return {short(dtype): matmul_peak(dtype, work.device, shapes, seconds_per_shape=0.15) for dtype in (bf16, fp32)}

    rates, peaks = take_turns(contenders, work, arguments.steps, arguments.repeat, peak)
    report["peak_flops"] = {name: statistics.median(one[name] for one in peaks) for name in peaks[0]}
    report["contenders"] = summary(contenders, rates, peaks, parameters)
    report["references"] = references
    print(f"\nmatrix-multiply peak: {report['peak_flops']['bf16'] / 1e9:,.0f} GFLOP/s in bf16, "
          f"{report['peak_flops']['fp32'] / 1e9:,.0f} in fp32")
    print_table(report["contenders"], references)
    if arguments.switched_off:
        report["switched_off"] = without_each(work, arguments.steps)
    return report


def without_each(work: Work, steps: int) -> dict[str, float]:
    """How many times as long a step takes without each idea: the median over steps that all variants take in turn.

    They share one model, so that each finds the memory as the one before left it, and take turns at being first.
    """
    ours = Ours("switched off", torch.bfloat16)
    ours.start(work)
    variants = [None, *VARIANTS]

    def seconds(name: str | None, step: int) -> float:
        ours.without, ours.dtype = name, torch.float32 if name == "bfloat16" else torch.bfloat16
        return ours.run(1, step)

    for name in variants:
        seconds(name, 0)
    times = []
    for step in tqdm(range(steps), desc="without each idea", unit=" steps"):
        turn = step % len(variants)
        times.append({name: seconds(name, step) for name in variants[turn:] + variants[:turn]})
    print(f"\n{'without':<60}{'time':>8}")
    slower = {}
    for name, idea in VARIANTS.items():
        slower[idea.title] = statistics.median(one[name] / one[None] for one in times)
        print(f"{idea.title:<60}{slower[idea.title]:>7.2f}x")
    return slower


if __name__ == "__main__":
    main()
