"""Draws the picture of benchmarks/train_speed.py."""

from pathlib import Path

OURS, THEIRS, CEILING = "#2a6f97", "#b5b5b5", "#c1121f"


def draw(report: dict, path: Path) -> None:
    """Draws useful tokens/s under the machine's ceiling, and what each idea gains, as far as the report has them.

    Raises:
        SystemExit: if matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise SystemExit("matplotlib is not installed: pip install -e '.[bench]'") from error
    matplotlib.use("Agg")
    from matplotlib import pyplot

    ideas = report.get("switched_off", {})
    panels = [_speeds] if report["references"] or not ideas else []
    panels += [_ideas] if ideas else []
    figure, axes = pyplot.subplots(1, len(panels), figsize=(7.5 * len(panels), 4.2), squeeze=False)
    for axis, draw_panel in zip(axes[0], panels, strict=True):
        draw_panel(axis, report)
    figure.tight_layout()
    figure.savefig(path, dpi=130)
    pyplot.close(figure)


def _speeds(axis, report: dict) -> None:
    contenders = report["contenders"]
    names = sorted(contenders, key=lambda name: contenders[name]["useful_tokens_per_second"])
    for place, name in enumerate(names):
        row = contenders[name]
        rate = row["useful_tokens_per_second"]
        axis.barh(place, rate, color=OURS if name.startswith("ours") else THEIRS,
                  xerr=[[rate - row["least"]], [row["most"] - rate]], error_kw={"capsize": 3, "lw": 1})
        axis.text(row["most"], place, f"  {rate:,.0f}, {row['share_of_matmul_peak']:.0%} of the {row['dtype']} peak",
                  va="center", bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    ceiling = report["peak_flops"]["bf16"] / (6 * report["parameters"])
    axis.axvline(ceiling, color=CEILING, ls="--", lw=1)
    axis.text(ceiling, -0.9, "bf16 matrix-multiply peak ", color=CEILING, ha="right", va="center", fontsize=8)
    axis.set_yticks(range(len(names)), names)
    axis.set_ylim(-1.2, len(names) - 0.4)
    axis.set_xlim(0, ceiling * 1.3)
    axis.set_xlabel("useful tokens per second (median, least and most)")
    axis.set_title(f"Training, {report['parameters'] / 1e6:.0f}M parameters, {report['threads']} CPU threads"
                   if report["device"] == "cpu" else f"Training, {report['parameters'] / 1e6:.0f}M parameters")
    axis.spines[["top", "right"]].set_visible(False)


def _ideas(axis, report: dict) -> None:
    ideas = report["switched_off"]
    names = sorted(ideas, key=ideas.get)
    axis.barh(range(len(names)), [ideas[name] - 1 for name in names], left=1, color=OURS)
    for place, name in enumerate(names):
        axis.text(max(ideas[name], 1), place, f" {ideas[name]:.2f}x", va="center")
    axis.axvline(1, color="black", lw=0.8)
    axis.set_yticks(range(len(names)), names)
    axis.set_xlim(min(0.95, min(ideas.values()) - 0.05), max(ideas.values()) * 1.1)
    axis.set_xlabel("time of a step without the idea / with it")
    axis.set_title("What each idea gives")
    axis.spines[["top", "right"]].set_visible(False)
