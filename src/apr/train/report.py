"""report.json and report.md of a run: what training changed, in figures, in one answer, and in
benchmark scores of the model that training began with and the one that it made.

OUT/scores/before/BENCHMARK, OUT/scores/after/BENCHMARK: an evaluation each, as `apr eval` makes it;
one that was stopped goes on.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from apr.checkpoint.dtypes import DTYPES
from apr.checkpoint.tensors import read_json_object
from apr.common.files import write_json, write_whole
from apr.engine.engine import Engine
from apr.engine.request import Request, Sampling
from apr.engine.runners.compiled_runner import CompiledRunner
from apr.engine.runners.runtime import load_runtime
from apr.eval.run.eval_settings import EvalSettings
from apr.eval.run.identity import shown_prompts
from apr.eval.run.result import Result
from apr.eval.run.suite import evaluate_suite, names_of, settings_of
from apr.model.families import config_from_checkpoint
from apr.model.opened import OpenedModel
from apr.text import Tokenizer
from apr.train.memory_plan import MemoryPlan
from apr.train.metrics import PICTURE, loss_text
from apr.train.packing import Document
from apr.train.run_folder import SCORES
from apr.train.train_settings import RunSettings, ScoreRequest

REPORT, PAGE = "report.json", "report.md"
ANSWER_TOKENS = 128
# What several samples are drawn with, as for HumanEval's pass@10 elsewhere.
SAMPLING = Sampling(temperature=0.8, top_p=0.95)


@dataclass(frozen=True)
class Shown:
    """The document of a report. middle: id of the token a middle follows, in filling gaps."""

    document: Document
    tokenizer: Tokenizer
    middle: int | None = None

    def parts(self) -> tuple[list[int], list[int]]:
        """(what the model is shown, what it is to write), in token ids.

        Shown is all before the first learned token; of a text, which is learned from its first
        token on, what goes up to the middle's token, or its first half.
        """
        ids, trained = self.document.ids.tolist(), self.document.trained
        start = int(trained.argmax())
        if trained[:2].any():
            found = self.middle in ids
            start = ids.index(self.middle) + 1 if found else max(1, len(ids) // 2)
        answer = ids[start:]
        return ids[:start], [i for i, t in zip(answer, trained[start:], strict=True) if t]

    def answer(self, opened: OpenedModel, dtype: str) -> str:
        """What a model writes as `apr run` runs it: greedy, at most `ANSWER_TOKENS` tokens."""
        prompt, _ = self.parts()
        runtime = load_runtime(opened.checkpoint, dtype)
        limit = max(1, min(ANSWER_TOKENS, runtime.context - len(prompt)))
        length = len(prompt) + limit
        stops = self.tokenizer.eos_ids | ({self.middle} if self.middle is not None else set())
        runner = runtime.make(-(-length // runtime.block_size) + 1)
        engine = Engine(runner, length, max_concurrency=1)
        (done,) = engine.generate([Request(tuple(prompt), max_tokens=limit, stop_ids=stops)])
        if isinstance(runner, CompiledRunner):
            runner.close()
        return self.text(list(done.token_ids))

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)


def fits(opened: OpenedModel, dtype: str, plan: MemoryPlan) -> bool:
    """Whether a model runs in the memory that its training takes.

    A quantized base is larger as numbers, and its embedding is fp32 for a moment.
    """
    config = config_from_checkpoint(opened.checkpoint)
    running = plan.parameters * DTYPES[dtype].itemsize + 4 * config.vocab_size * config.hidden_size
    file = plan.weights if opened.pulled.path.suffix == ".gguf" else 0
    return running + file <= plan.peak - plan.process


def sample_before(
    shown: Shown, answer: Callable[[], str | None], folder: Path
) -> dict[str, str | None]:
    """{prompt, reference, before}: kept in report.json for a run that is stopped and goes on."""
    path = folder / REPORT
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))["sample"]
    prompt, reference = shown.parts()
    sample = {
        "prompt": shown.text(prompt),
        "reference": shown.text(reference),
        "before": answer(),
    }
    write_json(path, {"sample": sample})
    return sample


def write_report(folder: Path, result: dict[str, Any], sample: dict[str, str | None]) -> None:
    """Both files. result: what `--json` prints of the run, its model and its method."""
    content = {**result, **(_perplexities(result) if result["nats"] else {}), "sample": sample}
    write_json(folder / REPORT, content)
    write_whole(folder / PAGE, _page(content, (folder / PICTURE).is_file()) + "\n")


def add_scores(folder: Path, scores: list[dict[str, Any]]) -> None:
    """Put what `score_run` found into the report of a complete run."""
    content = {**read_json_object(folder / REPORT), "scores": scores}
    write_json(folder / REPORT, content)
    write_whole(folder / PAGE, _page(content, (folder / PICTURE).is_file()) + "\n")


def _perplexities(result: dict[str, Any]) -> dict[str, float | None]:
    return {
        f"perplexity_{name}": None if loss is None else math.exp(min(loss, 700.0))
        for name, loss in (("before", result["first_eval"]), ("after", result["best_eval"]))
    }


def _page(content: dict[str, Any], picture: bool) -> str:
    """The report for people, in Markdown."""
    lines = [
        f"# {content['method']} of {content['model']}",
        "",
        f"{content['steps']} steps, {content['tokens']:,} tokens in {content['seconds']:,.0f} s;"
        f" training {loss_text(content)}.",
    ]
    if content["stopped"]:
        lines.append(f"Stopped early: {content['stopped']}.")
    if content["first_eval"] is not None:
        lines += [
            "",
            "| held out | before | after |",
            "|---|---|---|",
            f"| loss | {_number(content['first_eval'])} | {_number(content['best_eval'])} |",
        ]
        if content["nats"]:
            before, after = content["perplexity_before"], content["perplexity_after"]
            lines.append(f"| perplexity | {_number(before)} | {_number(after)} |")
        else:
            lines += [
                f"| {name.replace('_', ' ')} | {_number(first)} | {_number(last)} |"
                for name, (first, last) in content["measures"].items()
                if name != "loss"
            ]
    for score in content.get("scores", []):
        lines += ["", *score_table(score)]
    if picture:
        lines += ["", f"![loss by step]({PICTURE})"]
    sample = content["sample"]
    if sample["before"] is None:
        lines += [
            "",
            "No answer is shown: as it runs, the model takes more memory than this training.",
        ]
    for title, key in (
        ("Shown", "prompt"),
        ("Reference", "reference"),
        ("Before", "before"),
        ("After", "after"),
    ):
        if (text := sample[key]) is not None:
            lines += ["", f"## {title}", "", *(f"    {line}" for line in text.splitlines())]
    return "\n".join(lines)


def score_table(score: dict[str, Any]) -> list[str]:
    """One benchmark's pass@k with 95 % intervals, before and after, in Markdown."""
    samples = f"{score['samples']} samples each" if score["samples"] > 1 else "greedy"
    lines = [
        f"| {score['benchmark']}, {score['tasks']} tasks, {samples} | before | after |",
        "|---|---|---|",
    ]
    for name in score["before"]:
        if name.startswith("pass@"):
            both = (score[when][name] for when in ("before", "after"))
            shown = [f"{100 * s:.1f} % ({100 * a:.1f} to {100 * b:.1f})" for s, a, b in both]
            lines.append(f"| {name} | {' | '.join(shown)} |")
    return lines


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"


def check_scores(request: RunSettings, scores: ScoreRequest, *, offline: bool = False) -> None:
    """Raises UsageError for what cannot be scored, before anything is trained."""
    settings = _before(request, scores, Path(SCORES), offline)
    for name in names_of(scores.benchmark):
        shown_prompts(settings_of(settings, name))


def score_run(
    request: RunSettings,
    scores: ScoreRequest,
    folder: Path,
    *,
    offline: bool = False,
    progress: bool = True,
) -> list[dict[str, Any]]:
    """For each benchmark: name, tasks, samples, and pass@k with its interval before and after.

    folder: of a complete run.
    """
    before = replace(_before(request, scores, folder / SCORES, offline), progress=progress)
    after = replace(before, out=folder / SCORES / "after")
    if request.method == "full":
        after = replace(after, model=str(folder), adapter=None)
    else:
        after = replace(after, adapter=str(folder))
    pairs = zip(evaluate_suite(before).runs, evaluate_suite(after).runs, strict=True)
    return [
        {
            "benchmark": first.benchmark,
            "tasks": len(first.per_task),
            "samples": scores.samples,
            "before": {**_passes(first), "folder": str(here)},
            "after": {**_passes(second), "folder": str(there)},
        }
        for (first, here), (second, there) in pairs
    ]


def _before(
    request: RunSettings, scores: ScoreRequest, folder: Path, offline: bool
) -> EvalSettings:
    return EvalSettings(
        model=request.model,
        adapter=None if request.adapter is None else str(request.adapter),
        benchmark=scores.benchmark,
        n_samples=scores.samples,
        sampling=SAMPLING if scores.samples > 1 else Sampling(),
        limit=scores.limit,
        out=folder / "before",
        fim_tokens=request.infilling.tokens,
        offline=offline,
    )


def _passes(result: Result) -> dict[str, list[float]]:
    """pass@k -> [score, low, high], the last two its 95 % interval."""
    return {f"pass@{k}": list(score) for k, score in result.passes.items()}
