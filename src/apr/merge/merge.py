"""`apr merge`: settings to a model folder, or to nothing."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from apr import __version__
from apr.checkpoint import CheckpointWriter
from apr.checkpoint.adapter import WEIGHTS_FILE
from apr.checkpoint.model_folder import (
    MANIFEST_NAME,
    exact_source,
    files_from_folder,
    folder_manifest,
    refuse_existing,
    refuse_overlap,
)
from apr.common.errors import UsageError
from apr.common.memory import process_memory
from apr.common.record import FileRecord
from apr.hub.resolve import file_records, file_sha256
from apr.kernels.cpu.threads import default_threads
from apr.merge.driver import load_kernels, peak_memory, write_tensors
from apr.merge.inputs import ModelInput, open_input
from apr.merge.merge_plan import EMBEDDING, Plan, make_plan
from apr.merge.recipe import MergeSettings

if TYPE_CHECKING:
    from apr.merge.vocabulary import TokenizerSettings, VocabularyPlan


SETTINGS_FILE = "merge_config.yml"
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")

_STALE = ("merges.txt", "added_tokens.json")  # beside another tokenizer.json


@dataclass(frozen=True)
class PreparedMerge:
    """A merge whose inputs are open and checked; nothing of their tensors has been read.

    vocabulary: of the result, where the tokenizers were joined. chat_template: None where the
    first model's stays.
    """

    plan: Plan
    vocabulary: VocabularyPlan | None
    notes: tuple[str, ...]
    chat_template: str | None = None

    def summary(self, threads: int | None = None) -> dict[str, Any]:
        """What will happen, as `--plan` shows it; sizes in bytes."""
        plan, used = self.plan, threads or default_threads()
        idle = process_memory()
        return {
            "method": plan.method_name.replace("_", "-"),
            "models": [model.ref for model in plan.inputs],
            "base_model": plan.settings.base_model,
            "tensors": len(plan.outputs),
            "parameters": sum(o.nbytes // o.dtype.itemsize for o in plan.outputs),
            "dtypes": sorted({str(o.dtype).removeprefix("torch.") for o in plan.outputs}),
            "read_bytes": plan.read_bytes,
            "output_bytes": plan.nbytes,
            "peak_memory_bytes": idle + peak_memory(plan, used),
            "threads": used,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class MergeReport:
    """folder: what was written. parameters: numbers in it; nbytes: of its tensors. seconds: from
    the first byte read to the folder in its place.
    """

    folder: Path
    method: str
    tensors: int
    parameters: int
    nbytes: int
    seconds: float
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "folder": str(self.folder)}


def prepare(
    settings: MergeSettings, *, offline: bool = False, progress: bool = True
) -> PreparedMerge:
    """Open all models and check that they fit together.

    Raises UsageError (unknown models and parameters, different tokenizers), AprError (damaged
    files, tensors that are missing or differ in shape).
    """
    inputs = [
        open_input(ref, settings.base_model, offline=offline, progress=progress)
        for ref in settings.references()
    ]
    template, notes = _chat_template(settings, inputs)
    vocabulary, more = _vocabulary(settings, inputs)
    notes += more
    rows = vocabulary.vocab_size if vocabulary else None
    plan = make_plan(settings, inputs, rows)
    load_kernels(plan)
    joined = vocabulary.notes if vocabulary else ()
    return PreparedMerge(plan, vocabulary, (*notes, *plan.notes, *joined), template)


def run_merge(
    prepared: PreparedMerge,
    folder: str | Path,
    *,
    seed: int = 0,
    threads: int | None = None,
    force: bool = False,
    max_shard_bytes: float = 5e9,
    progress: bool = True,
) -> MergeReport:
    """Write the merged model, or nothing.

    seed: of random masks. force: replace a model that is in the folder. Raises UsageError (the
    folder is in the way), AprError (a tensor that is not finite, a full disk).
    """
    plan, begin = prepared.plan, time.perf_counter()
    target = Path(folder).expanduser()
    if not force:
        refuse_existing(target)
    for model in plan.inputs:
        refuse_overlap(target, model.path)
    gathered = None
    if prepared.vocabulary is not None:
        from apr.merge.driver import GatheredRows

        gathered = GatheredRows(plan, prepared.vocabulary)
    with (
        CheckpointWriter(target, max_shard_bytes, overwrite=force) as writer,
        _hashing(plan.inputs) as records,
    ):
        sums = write_tensors(
            plan, writer, seed=seed, threads=threads, vocabulary=gathered, progress=progress
        )
        inputs = records()
        files = _files(prepared)
        record = {"merge": json.loads(plan.settings.model_dump_json(exclude_defaults=True))}
        files["README.md"] = model_card(target.name, plan, inputs, seed)
        files[SETTINGS_FILE] = plan.settings.to_yaml().encode()
        files[MANIFEST_NAME] = folder_manifest(
            "merge",
            source=", ".join(exact_source(model.pulled) for model in plan.inputs),
            inputs=tuple(r for found in inputs for r in found),
            settings={**record, "seed": seed, "method": plan.method_name},
            tensors=sums,
            files=files,
            notes=prepared.notes,
        )
        for name, content in files.items():
            writer.add_file(name, content)
    parameters = sum(o.nbytes // o.dtype.itemsize for o in plan.outputs)
    seconds = time.perf_counter() - begin
    return MergeReport(
        target, plan.method_name, len(sums), parameters, plan.nbytes, seconds, prepared.notes
    )


@contextmanager
def _hashing(inputs: Sequence[ModelInput]) -> Iterator[Any]:
    """Checksums of the inputs' files, made beside the merge where they are not known yet."""
    stop = threading.Event()
    with ThreadPoolExecutor(1, "checksums") as pool:
        jobs = [pool.submit(_records, model, stop) for model in inputs]
        try:
            yield lambda: [job.result() for job in jobs]
        finally:
            stop.set()
            pool.shutdown(cancel_futures=True)


def _records(model: ModelInput, stop: threading.Event) -> tuple[FileRecord, ...]:
    records = file_records(model.pulled, stop)
    if model.adapter is not None:
        path = model.adapter.path / WEIGHTS_FILE
        size = path.stat().st_size
        records += (FileRecord(path.name, size, file_sha256(path, stop)),)
    return records


def _chat_template(
    settings: MergeSettings, inputs: Sequence[ModelInput]
) -> tuple[str | None, list[str]]:
    """The template to write (None: the first model's) and what to say about it."""
    if not settings.chat_template:
        return None, []
    from apr.merge.chat_templates import chosen_template

    templates = {
        model.label: model.tokenizer().chat_template
        for model in inputs
        if settings.chat_template == "auto" and has_tokenizer(model)
    }
    template, note = chosen_template(settings.chat_template, templates)
    return template, [note]


def _vocabulary(
    settings: MergeSettings, inputs: Sequence[ModelInput]
) -> tuple[VocabularyPlan | None, list[str]]:
    """The joint vocabulary, if one is asked for. Raises UsageError where one is needed."""
    # Not at the top: merges of models without tokenizers start faster without.
    asked = settings.tokenizer
    if settings.tokenizer_source is not None:
        asked = {"source": settings.tokenizer_source}
    with_tokenizer = [model for model in inputs if has_tokenizer(model)]
    notes = []
    if len(with_tokenizer) < len(inputs):
        without = [model.label for model in inputs if model not in with_tokenizer]
        notes = [f"without a tokenizer, taken to be like the others: {', '.join(without)}"]
        if not with_tokenizer:
            notes = ["no model has a tokenizer; none is written"]
    if asked is not None:
        if len(with_tokenizer) < len(inputs):
            raise UsageError(f"tokenizer_source is given, but {without[0]} has no tokenizer")
        from apr.merge.vocabulary import parse_tokenizer_settings

        return _joined(parse_tokenizer_settings(asked), settings, inputs), []
    for model in with_tokenizer[1:]:
        from apr.merge.vocabulary import differences

        first = with_tokenizer[0]
        found = differences(first.tokenizer_path, model.tokenizer_path, first.label, model.label)
        if found is not None:
            raise found.refusal()
    return None, notes


def has_tokenizer(model: ModelInput) -> bool:
    if model.checkpoint.format == "gguf":
        return True
    folder = model.path if model.path.is_dir() else model.path.parent
    return any((folder / name).is_file() for name in _TOKENIZER_FILES)


def _joined(
    tokenizer: TokenizerSettings, settings: MergeSettings, inputs: Sequence[ModelInput]
) -> VocabularyPlan | None:
    from apr.merge.vocabulary import VocabularyInput, plan_vocabulary

    models = [
        VocabularyInput(model.label, model.tokenizer_path, model.shape(EMBEDDING)[0])
        for model in inputs
    ]
    base = settings.references().index(settings.base_model) if settings.base_model else None
    source: str | int = tokenizer.source
    if source in settings.references():
        source = settings.references().index(str(source))
    return plan_vocabulary(source, models, base, tokenizer.pad_to_multiple_of, tokenizer.tokens)


def _files(prepared: PreparedMerge) -> dict[str, bytes]:
    """What lies beside the weights: the donor's files, with the result's configuration."""
    plan = prepared.plan
    donor = plan.inputs[0]
    if donor.family is not None:
        from apr.convert.import_checkpoint import files_from_gguf

        files, _ = files_from_gguf(donor.checkpoint, donor.family, "bf16")
    else:
        files = files_from_folder(donor.checkpoint, None)
    if donor.adapter is not None and has_tokenizer(donor):
        own = donor.tokenizer().to_files()
        own.pop("generation_config.json", None)
        replaced = {name for name in files if "chat_template" in name}
        if donor.tokenizer_path != donor.path:
            replaced |= {*_TOKENIZER_FILES, *_STALE, "special_tokens_map.json"}
        files = {name: content for name, content in files.items() if name not in replaced} | own
    config = dict(plan.config)
    if prepared.vocabulary is not None:
        for stale in (*_TOKENIZER_FILES, *_STALE):
            files.pop(stale, None)
        files |= prepared.vocabulary.files
        config |= prepared.vocabulary.config_changes
    if prepared.chat_template is not None:
        _set_chat_template(files, prepared.chat_template)
    files["config.json"] = (json.dumps(config, ensure_ascii=False, indent=2) + "\n").encode()
    for name in ("README.md", "mergekit_config.yml", SETTINGS_FILE):
        files.pop(name, None)  # they describe the donor
    return files


def _set_chat_template(files: dict[str, bytes], template: str) -> None:
    """In the file for it, and wherever else readers look for one."""
    files["chat_template.jinja"] = template.encode()
    files.pop("chat_template.json", None)
    stated = json.loads(files.get("tokenizer_config.json", b"{}"))
    if "chat_template" in stated:
        stated["chat_template"] = template
        text = json.dumps(stated, ensure_ascii=False, indent=2) + "\n"
        files["tokenizer_config.json"] = text.encode()


def model_card(name: str, plan: Plan, records: Sequence[Sequence[FileRecord]], seed: int) -> bytes:
    """README.md with the hub's front matter. records: files of each input, with checksums."""
    front = {
        "base_model": [model.ref for model in plan.inputs],
        "library_name": "transformers",
        "tags": ["merge", "apr", plan.method_name],
    }
    lines = ["---", yaml.safe_dump(front, sort_keys=False).strip(), "---", f"# {name}", ""]
    method = plan.method_name.replace("_", "-")
    lines += [f"A merge of {len(plan.inputs)} models by `{method}`, made with apr {__version__}."]
    base = plan.settings.base_model
    if base:
        lines += ["", f"Base model: `{base}`"]
    lines += ["", "| model | file | SHA-256 |", "|---|---|---|"]
    for model, files in zip(plan.inputs, records, strict=True):
        lines += [f"| `{model.ref}` | `{r.path}` | `{r.sha256}` |" for r in files]
    lines += ["", "## Settings", "", "```yaml", plan.settings.to_yaml().strip(), "```", ""]
    lines += [
        f"Random masks (if any) have seed {seed}. `apr merge merge_config.yml --seed {seed} -o OUT`"
        " repeats the merge.",
        "",
    ]
    return "\n".join(lines).encode()
