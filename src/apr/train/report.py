"""report.json and report.md of a run: what training changed, in figures and in one answer."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from apr.checkpoint import open_checkpoint
from apr.checkpoint.adapter import WEIGHTS_FILE
from apr.engine.engine import Engine
from apr.engine.request import Request
from apr.model.packed_linear import PackedLinear
from apr.model.torch_runner import TorchRunner
from apr.model.transformer import Transformer
from apr.text import Tokenizer
from apr.train.adapter_files import adapter_tensors
from apr.train.lora import LoraLinear, adapters_of
from apr.train.packing import Document
from apr.train.reporting import PICTURE

REPORT, PAGE = "report.json", "report.md"
ANSWER_TOKENS = 128
# Numbers that an answer may make, for every token again, of weights that are not stored as they are
# multiplied (a quantized base, an adapter that keeps zeros): about half a minute.
UNPACKED = 4e10
BLOCK = 64


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

    def answer(self, model: Transformer) -> str | None:
        """What a model, as it is in training, writes: greedy, at most `ANSWER_TOKENS` tokens.

        None where making its weights would take too long (`UNPACKED`).
        """
        prompt, _ = self.parts()
        limit = max(1, min(ANSWER_TOKENS, model.config.max_position - len(prompt)))
        if limit * _numbers_made(model) > UNPACKED:
            return None
        length = len(prompt) + limit
        stops = self.tokenizer.eos_ids | ({self.middle} if self.middle is not None else set())
        was_training = model.training
        model.eval()
        runner = TorchRunner(model, -(-length // BLOCK) + 1, BLOCK)
        engine = Engine(runner, length, max_concurrency=1)
        (done,) = engine.generate([Request(tuple(prompt), max_tokens=limit, stop_ids=stops)])
        model.train(was_training)
        return self.text(list(done.token_ids))

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)


def _numbers_made(model: Transformer) -> int:
    """How many numbers one token has made for it, see `UNPACKED`."""
    made = 0
    for module in model.modules():
        if isinstance(module, PackedLinear):
            made += module.out_features * module.in_features
        elif isinstance(module, LoraLinear) and module.keep_zeros:
            made += module.lora_b.shape[0] * module.lora_a.shape[1]
    return made


def sample_before(model: Transformer, shown: Shown, folder: Path) -> dict[str, str | None]:
    """{prompt, reference, before}: kept in report.json for a run that is stopped and goes on."""
    path = folder / REPORT
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))["sample"]
    prompt, reference = shown.parts()
    sample = {
        "prompt": shown.text(prompt),
        "reference": shown.text(reference),
        "before": shown.answer(model),
    }
    _write(path, json.dumps({"sample": sample}, indent=1))
    return sample


def write_report(
    model: Transformer,
    shown: Shown,
    folder: Path,
    sample: dict[str, str | None],
    result: dict[str, Any],
) -> None:
    """Both files. model: the one that is published. result: what `--json` prints of the run."""
    content = {
        **result,
        **_perplexities(result),
        "sample": {**sample, "after": shown.answer(model)},
    }
    _write(folder / REPORT, json.dumps(content, indent=1))
    _write(folder / PAGE, _page(content, (folder / PICTURE).is_file()))


@torch.no_grad()
def restore(model: Transformer, folder: Path) -> None:
    """Give a model the trained weights that were saved in a folder (`best`, say)."""
    if adapters_of(model):
        from safetensors.torch import load_file

        saved = load_file(folder / WEIGHTS_FILE)
        for name, tensor in adapter_tensors(model).items():
            tensor.copy_(saved[name])
        return
    checkpoint = open_checkpoint(folder)
    for name, parameter in model.named_parameters():
        parameter.copy_(checkpoint.tensors.get(name))


def _perplexities(result: dict[str, Any]) -> dict[str, float | None]:
    return {
        f"perplexity_{name}": None if loss is None else math.exp(min(loss, 700.0))
        for name, loss in (("before", result["first_eval"]), ("after", result["best_eval"]))
    }


def _write(path: Path, content: str) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(content + "\n", encoding="utf-8")
    temporary.replace(path)


def _page(content: dict[str, Any], picture: bool) -> str:
    """The report for people, in Markdown."""
    lines = [
        f"# {content['method']} of {content['model']}",
        "",
        f"{content['steps']} steps, {content['tokens']:,} tokens in {content['seconds']:,.0f} s;"
        f" training loss {_number(content['first_loss'])} to {_number(content['last_loss'])}.",
    ]
    if content["stopped"]:
        lines.append(f"Stopped early: {content['stopped']}.")
    if content["first_eval"] is not None:
        lines += [
            "",
            "| held out | before | after |",
            "|---|---|---|",
            f"| loss | {_number(content['first_eval'])} | {_number(content['best_eval'])} |",
            f"| perplexity | {_number(content['perplexity_before'])} |"
            f" {_number(content['perplexity_after'])} |",
        ]
    if picture:
        lines += ["", f"![loss by step]({PICTURE})"]
    sample = content["sample"]
    if sample["before"] is None:
        lines += ["", "No answer is shown: this would take minutes before merging."]
    for title, key in (
        ("Shown", "prompt"),
        ("Reference", "reference"),
        ("Before", "before"),
        ("After", "after"),
    ):
        if (text := sample[key]) is not None:
            lines += ["", f"## {title}", "", *(f"    {line}" for line in text.splitlines())]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
