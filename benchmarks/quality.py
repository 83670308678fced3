"""Quality of every pruning method, side by side: perplexity or ranking, run time and memory.

    python benchmarks/quality.py --model demo --results FILE
    python benchmarks/quality.py --model FOLDER --rows dense '*@50%' '*@2:4' --results FILE
    python benchmarks/quality.py --model FOLDER --check encoder --results FILE
    python benchmarks/quality.py --model FOLDER --check vision --results FILE
    python benchmarks/quality.py --results FILE --table

A row is METHOD@TARGET (or ``dense``), and ``--rows`` takes globs of them, in the order they shall
be measured; those with ``+ reconstruct`` take long, and are named in full. Each is pruned by a
fresh process of the command line, whose wall time and peak RSS are noted, and then measured in one
process beside it that stays. It is appended to FILE at once, so a run that was cut off goes on
after the last row when the same command is given again. ``--table`` prints what FILE holds as
Markdown.

*Perplexity*, lower is better: the held-out texts, joined by an empty line, are tokenized without
special tokens and cut into windows that do not overlap; what is left at the end is dropped. In fp32
the model predicts each token of a window from those before it in the window; perplexity is exp of
the mean negative log likelihood. Of more than ``--windows`` windows, that many are taken, evenly
spread. The demo model is measured on its held-out text in windows of 256 and calibrated on 32
windows of 256 of its calibration text; other models on the Brown corpus (brown.py): windows of 512
of the held-out texts, calibrated on 32 windows of 512 tokens of the others. These are also measured
on a text of another kind, news (lee.py), on 20 windows. The table's ± is the 95% interval
of the ratio to the dense model's perplexity, from the differences of single windows.

*Ranking*, higher is better: Spearman's rank correlation, of the pruned with the dense model, of
the cosine similarities of all pairs of held-out samples, fp32. ``--check encoder``: 128 paragraphs
of the Brown corpus (mean over tokens); calibrated on 128 other paragraphs of up to 128 tokens.
``--check vision``: 150 squares of 25 photographs (photos.py; class token); calibrated on 128
squares of the other 25 photographs.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import shutil
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from sys import executable
from typing import TYPE_CHECKING, Any

from rich.console import Console

import brown
import lee
import measuring
import photos
import ranking
from machine import machine
from prunectl.methods.table import DEFAULT, Method

if TYPE_CHECKING:
    import numpy as np

DENSE = "dense"
LONG = " + reconstruct"
FITS = {"": [], " + refine": ["--refine"], LONG: ["--reconstruct"]}
METHODS = {
    f"{method}{name}": [*(["--method", str(method)] if method is not DEFAULT else []), *options]
    for method in Method
    for name, options in FITS.items()
}  # fmt: skip
PART = ["--pattern", "2:4", "--sparsity", "0.4", "--budget"]
TARGETS = {
    **{f"{percent}%": ["--sparsity", str(percent / 100)] for percent in (30, 40, 50)},
    **{pattern: ["--pattern", pattern] for pattern in ("2:4", "4:8", "6:8", "8:16")},
    "40% in 2:4 matrices": [*PART, "matrix"],
    "40% in 2:4 rows": [*PART, "rows"],
}
ROWS = [DENSE, *(f"{method}@{target}" for target in TARGETS for method in METHODS)]
OTHER_WINDOWS = 20
PARAGRAPHS, SHORTEST = 128, 60
"""How many held-out paragraphs are ranked, and the characters that each has at least."""


@dataclass(frozen=True)
class Protocol:
    """What makes rows comparable: model, texts or images, and how both are used.

    Attributes:
        model: name in the table. metric: ``perplexity``, ``ranking`` or ``ranking of images``.
        texts: what is held out. calibration, samples: what is calibrated on, and how much of it.
        length: tokens in a window, None of images; windows: how many at most, None for all.
        seed: of the choice of samples.
    """

    model: str
    metric: str
    texts: str
    calibration: str
    samples: int
    length: int | None
    windows: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Source:
    """A protocol, and where its files are on this machine; ``other`` is a text of another kind."""

    protocol: Protocol
    model: str
    folder: Path
    calibration: str
    heldout: tuple[Path, ...]
    other: tuple[Path, ...] = ()

    def options(self) -> list[str]:
        """The options of a calibrated method."""
        sizes = ["--samples", str(self.protocol.samples), "--seed", str(self.protocol.seed)]
        tokens = self.protocol.length
        length = ["--sequence-length", str(tokens)] if tokens else []
        return ["--calibration", self.calibration, *sizes, *length]


def source_for(model: str, check: str, windows: int | None = None, seed: int = 0) -> Source:
    """The model's protocol and files; texts or photographs are fetched if they are not there."""
    if model == "demo":
        if check != "language":
            raise SystemExit(f"demo predicts text, so --check {check} needs another --model FOLDER")
        from prunectl import demo

        protocol = Protocol(model, "perplexity", "demo held-out", "demo", 32, 256, windows, seed)
        return Source(protocol, model, demo.model_folder(), "demo", (demo.heldout_text(),))
    from prunectl.userdirs import expanded

    folder = expanded(model).resolve()
    if check == "vision":
        return vision_source(folder, seed)
    corpus = brown.fetch()
    heldout = tuple(sorted((corpus / "heldout").glob("*.txt")))
    texts = ("brown held-out", "brown others")
    other: tuple[Path, ...] = ()
    if check == "encoder":
        protocol = Protocol(folder.name, "ranking", *texts, 128, 128, seed=seed)
    else:
        protocol = Protocol(folder.name, "perplexity", *texts, 32, 512, windows, seed)
        other = (lee.fetch() / "background.txt",)
    return Source(protocol, str(folder), folder, f"text:{corpus / 'calibration'}", heldout, other)


def vision_source(folder: Path, seed: int) -> Source:
    """The protocol and files of a model of images."""
    squares = photos.fetch()
    heldout = tuple(sorted((squares / "heldout").glob("*.png")))
    kinds = ("ranking of images", "photos held-out", "photos others")
    protocol = Protocol(folder.name, *kinds, samples=128, length=None, seed=seed)
    return Source(protocol, str(folder), folder, f"images:{squares / 'calibration'}", heldout)


# --- measures, in the process that stays ----------------------------------------------------------


def cut(ids: np.ndarray, length: int, most: int | None) -> np.ndarray:
    """Windows of a text, [windows, length], none overlapping; ``most`` of them, evenly spread."""
    whole = ids[: len(ids) // length * length].reshape(-1, length)
    if most is None or len(whole) <= most:
        return whole
    return whole[[index * len(whole) // most for index in range(most)]]


def losses(model: Any, windows: np.ndarray) -> list[float]:
    """The mean negative log likelihood of all but the first token, of each window."""
    import torch

    from prunectl.calibration.capture import FastLinear

    found = []
    with torch.inference_mode(), FastLinear():
        for window in windows:
            ids = torch.from_numpy(window)
            logits = model(ids[None]).logits[0, :-1].float()
            found.append(torch.nn.functional.cross_entropy(logits, ids[1:]).item())
    return found


def similarities(source: Source, folder: Path) -> np.ndarray:
    """Cosines of all pairs of the held-out samples, by the model in ``folder``."""
    if source.protocol.length is None:
        return ranking.of_images(folder, source.heldout)
    texts = [path.read_text(encoding="utf-8").strip() for path in source.heldout]
    units = [part for text in texts for part in text.split("\n\n") if len(part) >= SHORTEST]
    chosen = [units[index * len(units) // PARAGRAPHS] for index in range(PARAGRAPHS)]
    return ranking.of_texts(folder, chosen, source.protocol.length)


@cache
def dense_similarities(source: Source) -> np.ndarray:
    """Those of the model as it was, computed once for all rows."""
    return similarities(source, source.folder)


def measure(source: Source, folder: Path) -> dict[str, Any]:
    """The metric of what is in ``folder``, and on how much text."""
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    protocol = source.protocol
    if protocol.metric != "perplexity":
        dense, other = dense_similarities(source), similarities(source, folder)
        return {"score": ranking.spearman(dense, other), "pairs": len(dense)}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)

    def of(paths: tuple[Path, ...], most: int | None) -> dict[str, Any]:
        texts = [path.read_text(encoding="utf-8").strip() for path in paths]
        ids = tokenizer("\n\n".join(texts), add_special_tokens=False, verbose=False)["input_ids"]
        windows = cut(np.array(ids), protocol.length, most)
        found = losses(model, windows)
        rounded = [round(one, 5) for one in found]
        return {"score": math.exp(statistics.mean(found)), "losses": rounded}

    other = {"news": of(source.other, OTHER_WINDOWS)} if source.other else {}
    return of(source.heldout, protocol.windows) | other


# --- rows and the file that keeps them ------------------------------------------------------------


def command(prunectl: list[str], row: str, source: Source, output: Path) -> list[str]:
    """The command that prunes a row."""
    method, _, target = row.partition("@")
    options = [*METHODS[method], *TARGETS[target]]
    samples = source.options() if METHODS[method] else []
    return [*prunectl, "prune", source.model, *options, *samples, "-o", str(output)]


def wanted(globs: list[str]) -> list[str]:
    """The rows that globs mean, in the globs' order, each once."""
    rows = [
        [row for row in ROWS if row == one or (LONG not in row and fnmatchcase(row, one))]
        for one in globs
    ]
    if [] in rows:
        raise SystemExit(f"no row is called {globs[rows.index([])]}; rows: {', '.join(ROWS)}")
    return list(dict.fromkeys(row for found in rows for row in found))


def read_results(path: Path) -> list[dict[str, Any]]:
    """The rows of a results file; a last line that was cut off is taken out of it."""
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole, newline, rest = text.rpartition("\n")
    if rest:
        path.write_text(whole + newline, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines() if line]


def left(rows: list[str], protocol: Protocol, results: list[dict[str, Any]]) -> list[str]:
    """Rows that are not in the results yet, under the same protocol."""
    done = {entry["row"] for entry in results if entry["protocol"] == asdict(protocol)}
    return [row for row in rows if row not in done]


def measured(
    prunectl: list[str], row: str, source: Source, work: Path, pool: ProcessPoolExecutor
) -> dict[str, Any]:
    """Prune, measure, and clear up; what is to be kept of a row."""
    entry: dict[str, Any] = {"row": row, "protocol": asdict(source.protocol)}
    if row == DENSE:
        return entry | pool.submit(measure, source, source.folder).result()
    with tempfile.TemporaryDirectory(dir=work) as folder:
        output = Path(folder) / "pruned"
        seconds, peak = measuring.run(command(prunectl, row, source, output), work / "cache")
        totals = json.loads((output / "prunectl.json").read_bytes())["totals"]
        entry |= {"sparsity": totals["prunable"]["achieved"]}
        entry |= {"seconds": round(seconds, 1), "peak_rss_mib": round(peak / measuring.MIB)}
        return entry | pool.submit(measure, source, output).result()


def run(args: argparse.Namespace, log: Console) -> None:
    """Measure the rows that are left, one after the other."""
    os.environ["OMP_NUM_THREADS"] = str(args.threads)
    source = source_for(args.model, args.check, args.windows, args.seed)
    prunectl = [args.prunectl or str(Path(executable).with_name("prunectl"))]
    rows = left(wanted(args.rows), source.protocol, read_results(args.results))
    args.work.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")  # this process stays small: see measuring.run
    with ProcessPoolExecutor(1, context) as pool:
        for number, row in enumerate(rows, start=1):
            try:
                entry = measured(prunectl, row, source, args.work.resolve(), pool)
            except SystemExit as refused:  # the other rows may do
                log.print(f"{row} is left out: {refused}", markup=False)
                continue
            entry |= {"threads": args.threads, "machine": machine()}
            with args.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            found = f"{entry['score']:.4g}, {entry.get('seconds', 0)} s"
            log.print(f"{number}/{len(rows)} {row}: {found}", highlight=False)
    shutil.rmtree(args.work / "cache", ignore_errors=True)


# --- the table ------------------------------------------------------------------------------------


def shown(entry: dict[str, Any] | None, dense: dict[str, Any] | None = None) -> str:
    """A cell: four digits or three places of a score, and its interval."""
    if entry is None:
        return ""
    score = entry["score"]
    if entry["protocol"]["metric"] != "perplexity":
        return f"{score:.3f}"
    text = f"{score:.2f}" if score < 100 else f"{score:,.0f}"
    if dense is None or dense is entry or "losses" not in entry:
        return text
    more = [one - other for one, other in zip(entry["losses"], dense["losses"], strict=True)]
    return f"{text} ±{196 * statistics.stdev(more) / math.sqrt(len(more)):.1f}%"


def table(entries: list[dict[str, Any]]) -> str:
    """Markdown of the rows of one protocol: a line a method, a column a target and seed."""
    cells = {(entry["row"], entry["protocol"]["seed"]): entry for entry in entries}
    seeds = sorted({seed for _, seed in cells})
    columns = [
        (target, seed)
        for seed in seeds
        for target in TARGETS
        if any((f"{method}@{target}", seed) in cells for method in METHODS)
    ]
    names = [target + (f", seed {seed}" if seed else "") for target, seed in columns]
    lines = [f"| | {' | '.join(names)} | seconds | peak MiB |"]
    lines.append("|---|" + "---:|" * (len(columns) + 2))
    dense = next((entry for entry in entries if entry["row"] == DENSE), None)
    if dense:
        lines.append(f"| {DENSE} | {' | '.join([shown(dense)] * len(columns))} | | |")
    for method in METHODS:
        found = [cells.get((f"{method}@{target}", seed)) for target, seed in columns]
        some = [entry for entry in found if entry]
        if some:
            scores = " | ".join(shown(entry, dense) for entry in found)
            times = sorted(round(entry["seconds"]) for entry in some)
            spread = " to ".join(map(str, dict.fromkeys((times[0], times[-1]))))
            peak = max(entry["peak_rss_mib"] for entry in some)
            lines.append(f"| {method} | {scores} | {spread} | {peak:,} |")
    return "\n".join(lines)


def on_news(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same rows, with the scores on the other text in place of their own."""
    return [entry | entry["news"] for entry in entries if "news" in entry]


def print_tables(results: list[dict[str, Any]]) -> None:
    protocols = [entry["protocol"] | {"seed": 0} for entry in results]
    for protocol in [one for at, one in enumerate(protocols) if one not in protocols[:at]]:
        entries = [entry for entry in results if entry["protocol"] | {"seed": 0} == protocol]
        print(f"\n{', '.join(f'{key} {value}' for key, value in protocol.items())}\n")
        print(table(entries))
        if other := on_news(entries):
            print(f"\nOn news:\n\n{table(other)}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure the quality of pruning methods.")
    parser.add_argument("--model", default="demo", help="demo, or the folder of a checkpoint")
    parser.add_argument("--rows", nargs="+", default=["*"], metavar="GLOB", help="default: all")
    parser.add_argument("--check", choices=("language", "encoder", "vision"), default="language")
    parser.add_argument("--windows", type=int, help="of held-out text, at most (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice of samples")
    parser.add_argument("--results", type=Path, required=True, metavar="FILE", help="JSON lines")
    parser.add_argument("--table", action="store_true", help="print FILE's tables and stop")
    parser.add_argument("--threads", type=int, default=1, help="OMP_NUM_THREADS of all processes")
    parser.add_argument("--work", type=Path, default=Path(".bench"), help="folder to work in")
    parser.add_argument(
        "--prunectl", help="the command (default: the one installed with this Python)"
    )
    return parser.parse_args()


def main() -> None:
    args = arguments()
    if args.table:
        print_tables(read_results(args.results))
    else:
        run(args, Console(stderr=True))


if __name__ == "__main__":
    main()
