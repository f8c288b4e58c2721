"""What training shows: its plan, documents, progress and result."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from apr.common.memory import process_memory
from apr.common.progress import Display

if TYPE_CHECKING:
    import rich.progress
    from rich.text import Text

    from apr.text import Tokenizer
    from apr.train.packing import Document
    from apr.train.prepare import Prepared


def show_plan(summary: Mapping[str, Any], prepared: Prepared[Any], to_stderr: bool = False) -> None:
    """What will be trained, on what, with how much memory."""
    out = sys.stderr if to_stderr else sys.stdout
    trainable, parameters = summary["trainable_parameters"], summary["parameters"]
    print(
        f"{summary['method']} of {summary['model']} in {summary['dtype']}: {trainable:,} of"
        f" {parameters:,} parameters are trained ({100 * trainable / parameters:.2f} %)",
        file=out,
    )
    for line in prepared.report.lines():
        print(line, file=out)
    if summary["eval_documents"]:
        print(f"{summary['eval_documents']} documents held out", file=out)
    print(f"{summary['steps']} steps, {summary['batches_per_epoch']} batches an epoch", file=out)
    for note in summary["notes"]:
        print(f"note: {note}", file=out)
    parts = ", ".join(f"{name} {size / 1e6:,.0f}" for name, size in summary["memory"].items())
    print(f"peak memory about {summary['peak_memory_bytes'] / 1e6:,.0f} MB: {parts}", file=out)


def show_samples(prepared: Prepared[Any], count: int, as_json: bool) -> None:
    """The first documents, coloured by loss mask."""
    documents = [prepared.learning.shown(one) for one in prepared.examples[:count]]
    if as_json:
        print(json.dumps({"samples": sample_json(documents, prepared.tokenizer)}))
        return
    from rich.console import Console

    console = Console(highlight=False)
    for number, document in enumerate(documents, 1):
        console.rule(f"{number}: {len(document)} tokens, {document.targets} learned")
        console.print(coloured(document, prepared.tokenizer), soft_wrap=True)


def runs(document: Document, tokenizer: Tokenizer) -> list[tuple[str, bool]]:
    """(text, learned) of each longest run of tokens that are all learned, or all not."""
    pairs = zip(document.ids.tolist(), document.trained.tolist(), strict=True)
    return [
        (tokenizer.decode([i for i, _ in group], skip_special_tokens=False), learned)
        for learned, group in groupby(pairs, key=lambda pair: pair[1])
    ]


def coloured(document: Document, tokenizer: Tokenizer) -> Text:
    """Learned text green, the rest dim; without colours, learned text stands in «»."""
    from rich.text import Text

    text = Text()
    for piece, learned in runs(document, tokenizer):
        text.append(f"«{piece}»" if learned else piece, style="green" if learned else "dim")
    return text


def sample_json(documents: Sequence[Document], tokenizer: Tokenizer) -> list[dict[str, Any]]:
    return [
        {
            "tokens": len(document),
            "learned": document.targets,
            "text": [{"text": t, "learned": learned} for t, learned in runs(document, tokenizer)],
        }
        for document in documents
    ]


def show_result(result: Mapping[str, Any]) -> None:
    print(result["folder"])
    print(
        f"{result['steps']} steps in {result['seconds']:,.0f} s,"
        f" {result['tokens_per_second']:,.0f} tok/s; loss {result['first_loss']:.4f} to"
        f" {result['last_loss']:.4f}"
    )
    if result["first_eval"] is not None:
        from math import exp

        print(
            f"held-out perplexity {exp(result['first_eval']):.3f} before,"
            f" {exp(result['last_eval']):.3f} after; best {exp(result['best_eval']):.3f}"
            f" (epoch {result['best_epoch']})"
        )
    for score in result.get("scores", []):
        from apr.train.report import score_table

        print("\n".join(score_table(score)))
    if result["stopped"]:
        print(f"stopped early: {result['stopped']}")


def show_merged(result: Mapping[str, Any]) -> None:
    print(result["folder"])
    print(
        f"largest logit difference between adapter and merged model:"
        f" {result['max_logit_difference']:.2e} in fp32 (logits up to {result['max_logit']:.1f})"
    )


class TrainProgress(Display):
    """Loss, tokens a second, time left and memory on stderr: a bar on a terminal, else lines."""

    def columns(self) -> list[rich.progress.ProgressColumn]:
        import rich.progress as shown

        return [
            shown.TextColumn("step {task.completed}/{task.total}"),
            shown.BarColumn(),
            shown.TextColumn("{task.description}"),
        ]

    def on_line(self, line: dict[str, Any]) -> None:
        """line: of the metrics, with steps, all_tokens and all_seconds of the run."""
        if "eval_loss" in line:
            if self.enabled:
                self.say(
                    f"epoch {line['epoch']}: held-out loss {line['eval_loss']:.4f},"
                    f" perplexity {line['eval_perplexity']:.3f}"
                )
            return

        def state() -> str:
            rate = line["all_tokens"] / max(line["all_seconds"], 1e-9)
            left = (line["steps"] - line["step"]) * line["all_seconds"] / max(line["step"], 1)
            return (
                f"loss {line['loss']:.4f}, {rate:,.0f} tok/s, {_duration(left)} left,"
                f" {memory_gb():.2f} GB"
            )

        self.total = line["steps"]
        step = line["step"]
        self.show(lambda: f"step {step} of {line['steps']}: {state()}", state, step)


def memory_gb() -> float:
    """Memory of this process (GPU memory where it uses one), 1e9 bytes."""
    import torch

    if torch.cuda.is_available() and torch.cuda.memory_allocated():
        return torch.cuda.max_memory_allocated() / 1e9
    return process_memory() / 1e9


def _duration(seconds: float) -> str:
    whole = int(seconds)
    if whole >= 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole // 60} min {whole % 60} s" if whole >= 60 else f"{whole} s"
