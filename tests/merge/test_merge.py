"""Whole merges: what is refused before anything is read, what is written, what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from apr.common.errors import AprError, UsageError
from apr.merge.merge import prepare, run_merge
from apr.merge.recipe import make_settings
from checkpoint.test_adapter import DATA as ADAPTERS
from merge.mergekit_cases import CONFIG, LAYERS
from merge.tiny_models import tiny_weights, write_models


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "models"
    write_models(folder, tiny_weights())
    monkeypatch.chdir(folder)
    return folder


def linear(*models: str, **more: Any) -> dict[str, Any]:
    entries = [{"model": model, "parameters": {"weight": 1}} for model in models]
    return {"merge_method": "linear", "models": entries, **more}


def merge(settings: dict[str, Any], out: Path, **options: Any) -> dict[str, torch.Tensor]:
    run_merge(prepare(make_settings(settings)), out, progress=False, **options)
    return load_file(out / "model.safetensors")


def with_tensor(folder: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = load_file(folder / "model.safetensors")
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, folder / "model.safetensors")


def with_config(folder: Path, **changes: Any) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))


def test_settings_that_fit_no_models(models: Path) -> None:
    def refused(settings: dict[str, Any], message: str) -> None:
        with pytest.raises(UsageError, match=message):
            prepare(make_settings(settings))

    weight = {"parameters": {"weight": 1}}
    refused(linear("a", "a"), "a is listed twice")
    refused(linear("a", "b", merge_method="ties"), "ties needs a base model")
    refused(linear("a", "b", "c", merge_method="slerp", base_model="a"), "slerp|weight")
    refused(linear("a", merge_method="model_stock", base_model="base"), "weight|2 or more")
    refused({**linear("a"), "models": [{"model": "a"}]}, "needs the parameter 'weight' of a")
    refused(linear("a", "b", parameters={"normalise": 1}), "'normalise' is not one of linear.*norm")
    refused(linear("a", "nowhere"), "nowhere")
    source = {"model": "a", "layer_range": [0, LAYERS + 1], **weight}
    refused({"merge_method": "linear", "slices": [{"sources": [source]}]}, "it has 3 layers")


WRONG = [
    ("linear", {"weight": "much"}, "weight 'much' of parameters should be a valid number"),
    ("linear", {"weight": [{"filter": "nowhere", "value": "much"}]}, "weight 'much' of parameters"),
    ("linear", {"weight": float("nan")}, "weight nan of parameters should be a finite number"),
    ("linear", {"weight": [1, float("inf")]}, "weight inf of parameters"),
    ("linear", {"normalize": "l7"}, "normalize 'l7' of parameters should be a valid boolean"),
    ("task_arithmetic", {"lambda": 1e39}, r"lambda 1e\+39 of parameters"),
    ("ties", {"density": 1.5}, "density 1.5 of parameters should be less than or equal to 1"),
    ("ties", {"density": "-0.1"}, "density '-0.1' of parameters"),
    ("ties", {"consensus": "vote"}, "consensus 'vote' of parameters should be 'sum' or 'count'"),
    ("breadcrumbs", {"gamma": 1}, "gamma 1 of parameters should be less than 1"),
    ("dare_ties", {"rescale_norm": "l7"}, "rescale_norm 'l7' of parameters should be 'density'"),
    ("sce", {"select_topk": "x"}, "select_topk 'x' of parameters should be a valid number"),
    ("sce", {"select_topk": 7}, "select_topk 7 of parameters"),
    ("karcher", {"tol": "tiny"}, "tol 'tiny' of parameters should be a valid number"),
    ("karcher", {"tol": 0}, "tol 0 of parameters should be greater than 0"),
    ("karcher", {"max_iter": 1.5}, "max_iter 1.5 of parameters should be a valid integer"),
    ("karcher", {"max_iter": -1}, "max_iter -1 of parameters"),
    ("multislerp", {"eps": "x"}, "eps 'x' of parameters should be a valid number"),
    ("slerp", {"t": "half"}, "t 'half' of parameters should be a valid number"),
    ("slerp", {"t": [0.1, "x"]}, "t 'x' of parameters"),
    ("passthrough", {"scale": "x"}, "scale 'x' of parameters"),
    ("nuslerp", {"nuslerp_flatten": 3}, "nuslerp_flatten 3 of parameters"),
]


@pytest.mark.parametrize(("method", "parameters", "message"), WRONG)
def test_every_parameter_has_a_type(
    method: str, parameters: dict[str, Any], message: str, models: Path
) -> None:
    entries = [{"model": "a"}, {"model": "b"}]
    asked = {"merge_method": method, "models": entries, "parameters": {"weight": 1, **parameters}}
    with pytest.raises(UsageError, match=message):
        prepare(make_settings({**asked, "base_model": "base"}))


def test_a_parameter_of_one_model_is_read_too(models: Path) -> None:
    asked = linear("a", "b")
    asked["models"][1]["parameters"]["weight"] = "x"
    with pytest.raises(UsageError, match="weight 'x' of b should be a valid number"):
        prepare(make_settings(asked))


def test_what_changes_nothing_is_said(models: Path) -> None:
    settings = make_settings(
        {
            "merge_method": "ties",
            "base_model": "base",
            "models": [{"model": "a", "parameters": {"weight": 1, "lambda": 2}, "seed": 1}],
            "parameters": {"int8_mask": True, "t": 0.5},
            "random_seed": 7,
        }
    )
    notes = prepare(settings).notes
    assert [note.partition(" changes nothing")[0] for note in notes if "nothing" in note] == [
        "key random_seed",
        "key models.0.seed",
        "parameters: ties has no parameter t; it",
        "lambda under a",
    ]


def test_models_that_do_not_fit_together(models: Path) -> None:
    q = "model.layers.1.self_attn.q_proj.weight"
    with_tensor(models / "b", q, torch.ones(16, 8))
    with pytest.raises(AprError, match=f"{q} is 8x8 in a and 16x8 in b"):
        prepare(make_settings(linear("a", "b")))
    with_tensor(models / "b", q, None)
    with pytest.raises(AprError, match=f"b: tensor {q} is missing"):
        prepare(make_settings(linear("a", "b")))
    with_tensor(models / "c", "model.embed_tokens.weight", torch.ones(25, 8))
    with pytest.raises(AprError, match=r"24x8 in a and 25x8 in c .*`tokenizer_source`"):
        prepare(make_settings(linear("a", "c")))


def test_a_damaged_model_leaves_nothing(models: Path, tmp_path: Path) -> None:
    with_tensor(models / "b", "model.norm.weight", torch.full((8,), float("nan")))
    with pytest.raises(AprError, match=r"b: tensor model\.norm\.weight holds NaN"):
        merge(linear("a", "b"), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]


def test_what_lies_beside_the_weights(models: Path, tmp_path: Path) -> None:
    (models / "a" / "generation_config.json").write_text('{"temperature": 0.5}')
    (models / "a" / "README.md").write_text("the card of a")
    out = tmp_path / "out"
    merged = merge(linear("a", "b", dtype="bfloat16"), out)
    assert {tensor.dtype for tensor in merged.values()} == {torch.bfloat16}
    config = json.loads((out / "config.json").read_text())
    assert config == {**CONFIG, "torch_dtype": "bfloat16"}
    assert (out / "generation_config.json").read_text() == '{"temperature": 0.5}'
    card = (out / "README.md").read_text()
    manifest = json.loads((out / "apr_manifest.json").read_text())
    assert manifest["command"] == "merge" and len(manifest["inputs"]) == 2
    for record in manifest["inputs"]:
        assert record["sha256"] in card and len(record["sha256"]) == 64
    assert "the card of a" not in card and "merge_method: linear" in card
    again = tmp_path / "again"
    from apr.merge.recipe import read_settings

    run_merge(prepare(read_settings(out / "merge_config.yml")), again, progress=False)
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


@pytest.mark.parametrize("asked", ["chatml", "auto", "{{ messages[0].content }}!"])
def test_the_chat_template_of_the_result(asked: str, models: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel

    from apr.merge.chat_templates import NAMED
    from apr.text import load_tokenizer

    words = Tokenizer(WordLevel({chr(97 + i): i for i in range(24)}, unk_token="a"))
    for name, template in (("a", "{{ 1 }}"), ("b", "{{ 2 }}"), ("c", "{{ 2 }}\n")):
        words.save(str(models / name / "tokenizer.json"))
        stated = {"chat_template": template, "eos_token": "b"}
        (models / name / "tokenizer_config.json").write_text(json.dumps(stated))
    merge(linear("a", "b", "c", chat_template=asked), tmp_path / "out")
    expected = {"chatml": NAMED["chatml"], "auto": "{{ 2 }}"}.get(asked, asked)
    assert load_tokenizer(tmp_path / "out").chat_template == expected
    stated = json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert stated == {"chat_template": expected, "eos_token": "b"}


def test_the_manifest_has_the_checksums_of_what_was_written(models: Path, tmp_path: Path) -> None:
    from apr.checkpoint.model_folder import tensor_sha256

    merged = merge(linear("a", "b"), tmp_path / "out")
    manifest = json.loads((tmp_path / "out" / "apr_manifest.json").read_text())
    assert manifest["tensors"] == {name: tensor_sha256(t) for name, t in merged.items()}


def test_threads_shards_and_seeds(models: Path, tmp_path: Path) -> None:
    entries = [{"model": m, "parameters": {"weight": 0.5, "density": 0.5}} for m in ("a", "b")]
    dare = {"merge_method": "dare_ties", "base_model": "base", "models": entries}
    one = merge(dare, tmp_path / "one", threads=1)
    many = merge(dare, tmp_path / "many", threads=8)
    assert all(torch.equal(one[name], many[name]) for name in one)
    other = merge(dare, tmp_path / "other", seed=1)
    assert not torch.equal(one["lm_head.weight"], other["lm_head.weight"])
    out = tmp_path / "shards"
    run_merge(prepare(make_settings(dare)), out, max_shard_bytes=1000, progress=False)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    found = {}
    for shard in sorted(set(index["weight_map"].values())):
        found |= load_file(out / shard)
    assert all(torch.equal(one[name], found[name]) for name in one)


def test_tied_and_untied_output_layers(models: Path, tmp_path: Path) -> None:
    head, embedding = "lm_head.weight", "model.embed_tokens.weight"
    for name in ("a", "b"):
        with_tensor(models / name, head, None)
        with_config(models / name, tie_word_embeddings=True)
    both = merge(linear("a", "b"), tmp_path / "both")
    assert head not in both
    mixed = merge(linear("a", "c"), tmp_path / "mixed")
    mean = (tiny_weights()["a"][embedding] + tiny_weights()["c"][head]) / 2
    torch.testing.assert_close(mixed[head], mean)
    config = json.loads((tmp_path / "mixed" / "config.json").read_text())
    assert config["tie_word_embeddings"] is False


def test_stacked_layers_take_their_settings_along(models: Path, tmp_path: Path) -> None:
    with_config(models / "a", layer_types=["full", "sliding", "none"])
    pieces = [{"sources": [{"model": "a", "layer_range": r}]} for r in ([0, 3], [1, 3])]
    merged = merge({"merge_method": "passthrough", "slices": pieces}, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["num_hidden_layers"] == 5
    assert config["layer_types"] == ["full", "sliding", "none", "sliding", "none"]
    name = "model.layers.{}.mlp.up_proj.weight"
    original = tiny_weights()["a"]
    for layer, source in enumerate([0, 1, 2, 1, 2]):
        assert torch.equal(merged[name.format(layer)], original[name.format(source)])


def test_fp16_that_cannot_hold_a_value(models: Path, tmp_path: Path) -> None:
    with_tensor(models / "a", "model.norm.weight", torch.full((8,), 3e5))
    with pytest.raises(AprError, match=r"model\.norm\.weight .*float16 cannot hold"):
        merge(linear("a", "b", dtype="float16"), tmp_path / "out")


@pytest.mark.parametrize("form", ["base+adapter", "adapter", "adapter with base"])
def test_adapters_are_merged_on_the_fly(models: Path, tmp_path: Path, form: str) -> None:
    adapter = ADAPTERS / "plain"
    theirs = load_file(ADAPTERS / "plain.safetensors")  # what PEFT merges it to
    entries = [{"model": "a", "parameters": {"weight": 0.25}}]
    if form == "base+adapter":
        entries.append({"model": f"base+{adapter}", "parameters": {"weight": 0.75}})
    else:
        entries.append({"model": str(adapter), "parameters": {"weight": 0.75}})
    settings = {"merge_method": "linear", "models": entries}
    if form == "adapter with base":
        (models / "base").rename(models / "elsewhere")
        settings["base_model"] = "elsewhere"
    merged = merge(settings, tmp_path / "out")
    for name, tensor in tiny_weights()["a"].items():
        expected = 0.25 * tensor + 0.75 * theirs[name]
        torch.testing.assert_close(merged[name], expected, rtol=1e-6, atol=2e-6)
    manifest = json.loads((tmp_path / "out" / "apr_manifest.json").read_text())
    assert "adapter_model.safetensors" in [record["path"] for record in manifest["inputs"]]


def test_the_folder_that_is_in_the_way(models: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    merge(linear("a", "b"), out)
    with pytest.raises(UsageError, match="not empty"):
        merge(linear("a", "b"), out)
    merge(linear("a", "c"), out, force=True)
    with pytest.raises(UsageError, match="holds the model that is to be read"):
        merge(linear("a", "b"), models / "a", force=True)


@pytest.mark.skipif(sys.platform != "linux", reason="limits file sizes as Linux does")
def test_a_disk_that_is_full_is_one_line(models: Path, tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys\n"
        "from apr.cli.main import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "sys.argv[0] = 'apr'\n"
        "main()\n"
    )
    command = [sys.executable, "-c", script, "merge", "a", "b", "--strategy", "linear"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "out")], capture_output=True, text=True, cwd=models
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("apr: cannot write") and "File too large" in last
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_killed_half_way_leaves_no_model(models: Path, tmp_path: Path, how: int) -> None:
    """The writer waits in the middle of the merge until it is killed."""
    script = (
        "import sys, time\n"
        "from apr.merge import driver\n"
        "real = driver._write_blocks\n"
        "def slow(run, x, combine, output, slot, digest):\n"
        "    real(run, x, combine, output, slot, digest)\n"
        "    if output.name == 'model.layers.1.mlp.up_proj.weight':\n"
        "        print('half way', flush=True)\n"
        "        for _ in range(600):\n"
        "            run.advance(0)\n"
        "            time.sleep(0.1)\n"
        "driver._write_blocks = slow\n"
        "from apr.cli.main import main\n"
        "sys.argv[0] = 'apr'\n"
        "main()\n"
    )
    out = tmp_path / "out"
    command = [sys.executable, "-c", script, "merge", "a", "b", "--strategy", "linear", "-o", out]
    process = subprocess.Popen(
        list(map(str, command)), cwd=models, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, env={**os.environ, "APR_NUM_THREADS": "2"},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "half way\n"
    time.sleep(0.2)
    process.send_signal(how)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (-9 if how == signal.SIGKILL else 130)
    assert not out.exists()
    for left in tmp_path.rglob("*"):
        if "models" not in left.parts:
            assert left.suffix not in (".safetensors", ".json"), left
    if how == signal.SIGINT:
        assert errors.strip().splitlines()[-1] == "apr: interrupted"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["models"]
    merge(linear("a", "b"), out)  # the next merge removes what the killed one left
    assert sorted(path.name for path in tmp_path.iterdir()) == ["models", "out"]


def test_a_merge_loads_in_transformers(models: Path, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    merged = merge(linear("a", "b"), tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    loaded = dict(model.named_parameters())
    assert loaded.keys() == merged.keys()
    assert all(torch.equal(loaded[name].data, tensor) for name, tensor in merged.items())
