"""What an evaluation is asked to do: the flags of `apr eval`, the keys of a sweep. Plain data."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from apr.common.settings import check, option
from apr.engine.request import MODEL, SAMPLING, ModelSettings, Sampling
from apr.eval.benchmarks.task import TASKS, Dates, Mode, Newline

if TYPE_CHECKING:
    from apr.eval.strategies.strategy import Strategy


PROMPT = "Prompt"
JUDGING = "Judging"
OUTPUT = "Output"


@dataclass(frozen=True)
class Asking:
    """What is sent to the model besides the benchmark's own question."""

    prompt_strategy: str = option(
        "standard",
        "standard, few-shot, scot (structured chain of thought), scot-two-step, cgo (chain of"
        " grounded objectives) or reflexion (repair by the examples that the prompt shows).",
        panel=PROMPT,
    )
    system: str = option("", "A system message, for chat models.", panel=PROMPT)
    exemplars: Path | None = option(
        None,
        "Solved problems to show: JSON lines with prompt and solution, for scot and cgo with a"
        " plan as well; or the word own, for those that come with apr.",
        panel=PROMPT,
    )
    prompt_template: tuple[Path, ...] = option(
        (),
        "A Jinja file in place of the strategy's template; give it twice for a strategy with two.",
        repeated=True,
        panel=PROMPT,
    )
    rounds: int | None = option(
        None, "Rounds of repair, with reflexion. [default: 2]", panel=PROMPT
    )


@dataclass(frozen=True, kw_only=True)
class JudgeSettings:
    """Which tasks count, and how programs are run and scored: wherever the samples come from."""

    benchmark: str = option(
        "humaneval",
        "A benchmark; several with commas between; evalplus (humaneval+,mbpp+), infilling (three"
        " kinds of gaps) or all whose data is here; or your own file of tasks (.jsonl, .py).",
        panel=TASKS,
    )
    data: Path | None = option(
        None, "The benchmark's file, instead of the installed one.", panel=TASKS
    )
    dates: Dates = field(default_factory=Dates)
    ks: tuple[int, ...] | None = option(
        None,
        "Which pass@k to show, as 1,10. [default: those of 1, 10, 100 that have enough samples]",
        flag="k",
        panel=JUDGING,
    )
    rerank: tuple[str, ...] = option(
        (),
        "Choose one of several samples of a task without its tests: by majority (of behaviour),"
        " tests (the examples that the prompt shows) or logprob; or by several, as"
        " majority,logprob.",
        none="none",
        panel=JUDGING,
    )
    python: str | None = option(
        None,
        "The interpreter that runs the programs, with the libraries they need. [default: the one"
        " that runs apr, with numpy; for bigcodebench with all it has]",
        panel=JUDGING,
    )
    exclude_broken: bool = option(
        False,
        "Leave tasks whose reference solution fails on this machine out of the score.",
        panel=JUDGING,
    )
    workers: int | None = option(
        None,
        "Programs that are judged at the same time. [default: one for each core]",
        least=1,
        panel=JUDGING,
    )
    level: Literal["auto", "full", "confined", "limits"] = option(
        "auto",
        "Isolation of the programs: full, confined, limits, or auto for the best there is.",
        flag="sandbox-level",
        panel=JUDGING,
    )
    allow_weak: bool = option(
        False,
        "Accept the level limits, which sets resource limits and nothing else.",
        flag="allow-weak-sandbox",
        panel=JUDGING,
    )
    seed: int = 0  # of reranking, too
    progress: bool = True

    def __post_init__(self) -> None:
        check(self)


Form = Literal["samples", "chat"]


@dataclass(frozen=True, kw_only=True)
class ScoreSettings(JudgeSettings):
    """How samples made elsewhere are judged. form: what the rows hold."""

    form: Form = option(
        "samples",
        "samples: rows of code; chat: raw chat answers (text, response, output, raw or messages),"
        " whose code is taken as apr eval does.",
        flag="from",
        panel=JUDGING,
    )


@dataclass(frozen=True, kw_only=True)
class EvalSettings(JudgeSettings, ModelSettings):
    """What an evaluation is asked to do. None of mode and newline is what is usual for the
    benchmark and the model; of prefill, yes where apr itself runs the model; of out, a folder
    under runs/ named after the run.
    """

    model: str = option(
        "",
        "Short name, hf://org/name, pypi://package, folder or .gguf; with --endpoint the server's"
        " name for it.",
        argument=True,
    )
    endpoint: str | None = option(
        None,
        "URL of an OpenAI-compatible server that has the model, as http://localhost:8000/v1; its"
        " key is read from the environment variable APR_API_KEY.",
        panel=MODEL,
    )
    request_timeout: float = option(
        600.0, "Seconds that the server of --endpoint has for an answer.", panel=MODEL
    )
    limit: int | None = option(None, "Use only the first tasks.", least=1, panel=TASKS)
    split: str | None = option(
        None,
        "For BigCodeBench: complete (go on from a docstring) or instruct (asked in words).",
        panel=TASKS,
    )
    mode: Mode | None = option(
        None,
        "base or chat (auto: chat where the model has a template); for infilling psm, spm, or"
        " prefix for the left-to-right baseline (auto: psm).",
        none="auto",
        panel=PROMPT,
    )
    newline: Newline | None = option(
        None,
        "The end of a base prompt: strip takes white space off, keep leaves it as in the data, add"
        " ends the line, auto is what is usual for the benchmark.",
        none="auto",
        panel=PROMPT,
    )
    prefill: bool | None = option(
        None,
        "Begin a chat model's answer for it, as EvalPlus does. [default: yes, but not with"
        " --endpoint]",
        panel=PROMPT,
    )
    asking: Asking = field(default_factory=Asking)
    fim_tokens: tuple[str, ...] = option(
        (),
        "PREFIX,SUFFIX,MIDDLE: the tokens of a model that was trained to infill with other names"
        " for them than its family's.",
        panel=PROMPT,
    )
    n_samples: int = option(1, "Samples of each task.", least=1, panel=SAMPLING)
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = option(
        None,
        "New tokens of a sample at most. [default: the benchmark's limit]",
        least=1,
        panel=SAMPLING,
    )
    seed: int = option(0, "The same seed gives the same samples.", panel=SAMPLING)
    max_concurrency: int = option(
        32, "Samples that are generated at the same time.", least=1, panel=SAMPLING
    )
    out: Path | None = option(
        None, "Folder of the run. [default: runs/<benchmark>-<model>-<digest>]", panel=OUTPUT
    )
    fresh: bool = option(False, "Forget what the run's folder holds.", panel=OUTPUT)

    @cached_property
    def strategy(self) -> Strategy:
        """What `asking` means. Raises UsageError."""
        from apr.eval.strategies.strategy import load_strategy

        how = self.asking
        return load_strategy(
            how.prompt_strategy, how.system, how.exemplars, how.prompt_template, how.rounds
        )
