"""What comes out: a table, a JSON file, and a picture."""

import json
import os
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
from matplotlib import ticker
from measure import Row

HEADER = f"{'side':<13} {'s/round':>9} {'ours/it':>8} {'first':>8} {'peak MB':>8} {'loss':>7}"


def machine() -> dict[str, Any]:
    """Returns the processor and how busy it is; nothing that names the machine."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        model = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        model = "unknown"
    return {"cores": len(os.sched_getaffinity(0)), "model": model, "load": os.getloadavg()}


def table(rows: dict[str, Row], ratios: dict[str, float]) -> str:
    lines = [HEADER]
    for name, row in rows.items():
        numbers = (
            _number(row.seconds, 9, 4),
            "1.00".rjust(8) if name == "ours" else _number(ratios.get(name), 8, 2),
            _number(row.first, 8, 2),
            _number(row.peak_bytes and row.peak_bytes / 1e6, 8, 0),
            _number(row.loss, 7, 4),
        )
        notes = "; ".join(filter(None, (row.mode, row.problem)))
        lines.append(f"{name:<13} {' '.join(numbers)}  {notes}".rstrip())
    return "\n".join(lines)


def _number(value: float | None, width: int, digits: int) -> str:
    return "-".rjust(width) if value is None else f"{value:{width}.{digits}f}"


def write(results: dict[str, Any], path: Path) -> None:
    """Writes the file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(json.dumps(results, indent=2) + "\n")
    unfinished.replace(path)


def draw(results: dict[str, Any], path: Path) -> None:
    """Draws how many times longer than ours a round of each side takes, a group of bars for each workload."""
    ratios = {name: own for name, own in results["ratios"].items() if own}
    sides = list(dict.fromkeys(side for own in ratios.values() for side in own))
    figure, axes = plt.subplots(figsize=(max(6.0, 1.5 + 1.6 * len(ratios)), 4.0), layout="constrained")
    width = 0.8 / max(len(sides), 1)
    for number, side in enumerate(sides):
        values = [1 / own[side] if side in own else 0 for own in ratios.values()]
        places = [group + (number - (len(sides) - 1) / 2) * width for group in range(len(ratios))]
        bars = axes.bar(places, values, width, label=side, color=plt.colormaps["tab20"](number))
        axes.bar_label(bars, [f"{value:.1f}" if value else "" for value in values], fontsize=7)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set(
        xticks=range(len(ratios)), xticklabels=ratios, yscale="log", ylabel="seconds, as a multiple of fedjax_edge"
    )
    axes.yaxis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_locator(ticker.NullLocator())
    figure.legend(loc="outside upper center", fontsize=8, ncols=4)
    axes.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    plt.close(figure)
