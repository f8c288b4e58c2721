"""Pruning: apr against the code of Wanda's and SparseGPT's authors and llm-compressor, in one run.

    python benchmarks/prune.py MODEL --authors CHECKOUT --calibration FILE [--rounds 3]
        [--llm-compressor PYTHON] [--cases wanda/0.5,sparsegpt/2:4] [--text FILE ...]
        [--out FILE.json]
    python benchmarks/prune.py --layers 12,24

MODEL is a Hugging Face folder of a Llama model; CHECKOUT a clone of github.com/locuslab/wanda,
which holds SparseGPT as well; PYTHON has llm-compressor installed. Every round prunes with each
program once, in turn, on the same calibration ids (64 sequences of 512). Seconds are of loading,
calibrating and pruning, without imports (peers write no model in that time, ours does); peak memory
(RSS) is of the whole process.
Figures are medians, ratios medians of the rounds' ratios. With --text the pruned models of the
first round are measured as well, by `apr eval --perplexity` on 24 windows of 512 tokens, with the
model itself and magnitude pruning beside them.

--layers: peak memory of pruning random weights with so many layers.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch

from apr.calibrate.sequences import calibration
from apr.checkpoint import CheckpointWriter
from apr.text import load_tokenizer
from merge import measured

HERE = Path(__file__).parent
WORKER = HERE / "peers" / "pruning_worker.py"
APR = [sys.executable, "-c", "from apr.cli.main import main; main()"]
SEQUENCES, LENGTH, WINDOWS = 64, 512, 24
FEW = 16  # sequences where only memory is of interest
METHODS = ("wanda", "sparsegpt")
CASES = ",".join(f"{method}/{amount}" for amount in ("0.5", "2:4") for method in METHODS)


def apr_command(
    model: Path, method: str, amount: str, text: str, out: Path, sequences: int
) -> list[str]:
    how = ["--pattern", amount] if ":" in amount else ["--sparsity", amount]
    drawn = ["--calibration", text, "--sequences", str(sequences), "--sequence-length", str(LENGTH)]
    return [
        *APR, "prune", str(model), "--method", method, *how, *drawn, "-o", str(out), "--force",
        "--json",
    ]  # fmt: skip


def run_apr(
    model: Path, method: str, amount: str, text: str, out: Path, sequences: int = SEQUENCES
) -> dict[str, float]:
    found = measured(apr_command(model, method, amount, text, out, sequences), {})
    return {"seconds": json.loads(found["output"])["seconds"], "peak": found["peak"]}


def run_authors(
    checkout: Path, model: Path, method: str, amount: str, ids: Path, out: Path
) -> dict[str, float]:
    sparsity, pattern = ("0.5", amount) if ":" in amount else (amount, "-")
    arguments = [checkout, method, sparsity, pattern, model, ids, out]
    found = measured([sys.executable, str(WORKER), *map(str, arguments)], {})
    return json.loads(found["output"].splitlines()[-1])


def run_llm_compressor(
    python: Path, model: Path, method: str, amount: str, ids: Path, out: Path
) -> dict[str, float]:
    sparsity, pattern = ("0.5", amount) if ":" in amount else (amount, "-")
    worker = HERE / "peers" / "llmcompressor_worker.py"
    arguments = [str(python), str(worker), method, sparsity, pattern, *map(str, (model, ids, out))]
    return json.loads(measured(arguments, {})["output"].splitlines()[-1])


def perplexities(model: Path, texts: list[str]) -> dict[str, float]:
    found = {}
    for text in texts:
        command = [*APR, "eval", str(model), "--perplexity", text, "--window", str(LENGTH)]
        result = measured([*command, "--max-windows", str(WINDOWS), "--json"], {})
        found[text] = json.loads(result["output"])["perplexity"]
    return found


def compare(arguments: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    model, text = Path(arguments.model), arguments.calibration
    tokenizer = load_tokenizer(model)
    vocabulary = json.loads((model / "config.json").read_text())["vocab_size"]
    drawn = calibration([text], tokenizer, SEQUENCES, LENGTH, vocab_size=vocabulary)
    torch.save(drawn.ids, work / "ids.pt")
    cases = [(m, a) for m, _, a in (case.partition("/") for case in arguments.cases.split(","))]
    rounds: dict[tuple[str, str], list[dict[str, dict[str, float]]]] = {c: [] for c in cases}
    quality: dict[str, dict[str, float]] = {}
    if arguments.text:
        quality["dense"] = perplexities(model, arguments.text)
        for amount in dict.fromkeys(amount for _, amount in cases):
            run_apr(model, "magnitude", amount, text, work / "ours")
            quality[f"magnitude {amount}"] = perplexities(work / "ours", arguments.text)
    for number in range(arguments.rounds):
        for method, amount in cases:
            print(f"round {number + 1}: {method} {amount}", file=sys.stderr)
            theirs, other = work / "theirs", work / "other"
            for file in model.glob("tokenizer*"):
                for folder in (theirs, other):
                    folder.mkdir(exist_ok=True)
                    (folder / file.name).write_bytes(file.read_bytes())
            found = {
                "apr": run_apr(model, method, amount, text, work / "ours"),
                "authors": run_authors(
                    arguments.authors, model, method, amount, work / "ids.pt", theirs
                ),
            }
            if arguments.llm_compressor:
                found["llm-compressor"] = run_llm_compressor(
                    arguments.llm_compressor, model, method, amount, work / "ids.pt", other
                )
            rounds[method, amount].append(found)
            for program, values in found.items():
                line = f"  {program}: {values['seconds']:.1f} s, {values['peak'] / 1e9:.2f} GB"
                print(line, file=sys.stderr)
            if arguments.text and number == 0:
                quality[f"{method} {amount}"] = perplexities(work / "ours", arguments.text)
                quality[f"{method} {amount}, authors"] = perplexities(theirs, arguments.text)
                if arguments.llm_compressor:
                    name = f"{method} {amount}, llm-compressor"
                    quality[name] = perplexities(other, arguments.text)
    for name, values in quality.items():
        print(f"perplexity {name}: {', '.join(f'{v:.2f}' for v in values.values())}")
    return [report(m, a, rounds[m, a]) for m, a in cases] + [{"perplexity": quality}]


def report(method: str, amount: str, rounds: list[dict[str, dict[str, float]]]) -> dict[str, Any]:
    median = {
        program: {
            key: statistics.median(r[program][key] for r in rounds) for key in ("seconds", "peak")
        }
        for program in rounds[0]
    }
    print(f"{method} {amount}:")
    for program, values in median.items():
        print(f"  {program:15}{values['seconds']:7.1f} s {values['peak'] / 1e9:6.2f} GB")
    ratios: dict[str, dict[str, float]] = {}
    for peer in (program for program in median if program != "apr"):
        ratios[peer] = {
            "time": statistics.median(r[peer]["seconds"] / r["apr"]["seconds"] for r in rounds),
            "memory": statistics.median(r["apr"]["peak"] / r[peer]["peak"] for r in rounds),
        }
        time, memory = ratios[peer].values()
        print(f"  {peer} / apr, time: {time:.2f}; apr / {peer}, memory: {memory:.2f}")
    return {"method": method, "amount": amount, "median": median, "ratios": ratios}


def random_model(folder: Path, layers: int) -> None:
    """Random weights in bf16, of Llama's form; hidden size 1024."""
    hidden, inner, vocabulary = 1024, 4096, 512
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(layers):
        p = f"model.layers.{layer}."
        shapes |= {f"{p}self_attn.{n}_proj.weight": (hidden, hidden) for n in "qkvo"}
        shapes |= {f"{p}mlp.{n}_proj.weight": (inner, hidden) for n in ("gate", "up")}
        shapes[f"{p}mlp.down_proj.weight"] = (hidden, inner)
        shapes |= {f"{p}{n}_layernorm.weight": (hidden,) for n in ("input", "post_attention")}
    shapes["model.norm.weight"] = (hidden,)
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden,
        "intermediate_size": inner, "num_hidden_layers": layers, "num_attention_heads": 16,
        "vocab_size": vocabulary, "tie_word_embeddings": True, "torch_dtype": "bfloat16",
        "max_position_embeddings": 2048,
    }  # fmt: skip
    generator = torch.Generator().manual_seed(0)
    with CheckpointWriter(folder) as writer:
        writer.add_file("config.json", json.dumps(config).encode())
        for name, shape in shapes.items():
            weight = torch.randn(shape, generator=generator) * 0.02
            writer.add(name, (torch.ones(shape) if len(shape) == 1 else weight).bfloat16())
        for name, content in byte_tokenizer().items():
            writer.add_file(name, content)


def byte_tokenizer() -> dict[str, bytes]:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    found = Tokenizer(models.BPE({letter: i for i, letter in enumerate(letters)}, []))
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    return {
        "tokenizer.json": found.to_str().encode(),
        "tokenizer_config.json": b'{"tokenizer_class": "PreTrainedTokenizerFast"}',
    }


def memory_by_layers(counts: list[int], work: Path) -> list[dict[str, Any]]:
    found = []
    for method in METHODS:
        for layers in counts:
            model = work / f"random-{layers}"
            if not model.exists():
                random_model(model, layers)
            result = run_apr(model, method, "0.5", "builtin", work / "out", FEW)
            found.append({"method": method, "layers": layers, "peak": result["peak"]})
            print(f"{method}, {layers} layers: {result['peak'] / 1e6:.0f} MB")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("model", nargs="?")
    parser.add_argument("--authors", type=Path)
    parser.add_argument("--llm-compressor", type=Path, metavar="PYTHON")
    parser.add_argument("--calibration", default="builtin")
    parser.add_argument("--cases", default=CASES, metavar="METHOD/AMOUNT,...")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--text", nargs="*", default=[])
    parser.add_argument("--layers")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as work:
        if arguments.layers:
            counts = [int(part) for part in arguments.layers.split(",")]
            results = memory_by_layers(counts, Path(work))
        elif arguments.model and arguments.authors:
            results = compare(arguments, Path(work))
        else:
            parser.error("MODEL and --authors CHECKOUT, or --layers")
    if arguments.out:
        arguments.out.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
