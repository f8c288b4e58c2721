"""What an evaluation is asked to do."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from apr.engine.request import Sampling  # plain data: the engine itself is not imported
from apr.eval.benchmarks.task import Mode, Newline, Window
from apr.eval.strategies.strategy import Strategy
from apr.sandbox import Level


@dataclass(frozen=True)
class EvalSettings:
    """What an evaluation is asked to do. limit: only the first tasks. mode, newline None: what
    is usual for the benchmark and the model. prefill None: yes, if apr itself runs the model. out
    None: a folder under runs/ named after the run. endpoint: URL of an OpenAI-compatible server
    that has `model`; request_timeout: seconds until it has answered. adapter: for `model`, see
    `apr.model.opened.open_model`.
    """

    model: str
    benchmark: str = "humaneval"
    n_samples: int = 1
    sampling: Sampling = field(default_factory=Sampling)
    ks: tuple[int, ...] | None = None
    limit: int | None = None
    mode: Mode | None = None
    newline: Newline | None = None
    prefill: bool | None = None
    max_tokens: int | None = None  # of a sample; None: as many as the benchmark says
    seed: int = 0
    data: Path | None = None
    out: Path | None = None
    workers: int | None = None
    level: Literal["auto"] | Level = "auto"
    allow_weak: bool = False
    dtype: str = "auto"
    device: str = "auto"
    max_concurrency: int = 32
    fresh: bool = False
    offline: bool = False
    progress: bool = True
    window: Window | None = None
    split: str | None = None
    python: str | None = None  # runs the programs; None: our own interpreter
    exclude_broken: bool = False
    adapter: str | None = None
    endpoint: str | None = None
    request_timeout: float = 600.0
    strategy: Strategy = field(default_factory=Strategy)
    fim_tokens: tuple[str, ...] = ()  # prefix, suffix, middle; (): those of the model's family
    rerank: tuple[str, ...] = ()  # ways of choosing one of several samples (rerank.choose)
