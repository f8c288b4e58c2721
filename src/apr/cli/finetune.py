"""`apr finetune`: train an adapter, or a whole model, on instruction data or text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from apr.train.report import ScoreRequest


def register(app: typer.Typer) -> None:
    app.command("finetune", help="Train a LoRA adapter, or the whole model, on your data.")(
        finetune
    )


def finetune(
    context: typer.Context,
    model: Annotated[
        str, typer.Argument(help="Short name, hf://org/name, pypi://package, folder or .gguf.")
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="Folder of the run; the same command again goes on with it.",
            rich_help_panel="Output",
        ),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            "--data",
            help="JSONL, JSON, Parquet or hf://datasets/org/name: {instruction, response},"
            " {messages}, {prompt, completion} or {text}.",
            rich_help_panel="Data",
        ),
    ] = None,
    method: str = typer.Option(
        "lora",
        "--method",
        help="lora, qlora (LoRA on a 4-bit model), full (all weights), or auto with --memory.",
        rich_help_panel="Method",
    ),
    memory: str | None = typer.Option(
        None,
        "--memory",
        help="With --method auto: how much memory training may take, as 8GB.",
        rich_help_panel="Method",
    ),
    rank: int = typer.Option(
        16,
        "--rank",
        help="Rank of the adapter: how large its two matrices are.",
        rich_help_panel="Method",
    ),
    lora_alpha: float = typer.Option(
        32.0,
        "--lora-alpha",
        help="The update is multiplied by this over the rank.",
        rich_help_panel="Method",
    ),
    lora_dropout: float = typer.Option(
        0.0,
        "--lora-dropout",
        help="Share of the adapter's inputs that is hidden at random in training.",
        rich_help_panel="Method",
    ),
    rslora: bool = typer.Option(
        False,
        "--rslora",
        help="Multiply the update by alpha / sqrt(rank) instead of alpha / rank (rsLoRA).",
        rich_help_panel="Method",
    ),
    dora: bool = typer.Option(
        False,
        "--dora",
        help="Learn each row's length apart from its direction (DoRA).",
        rich_help_panel="Method",
    ),
    targets: str = typer.Option(
        "q_proj,v_proj",
        "--targets",
        help="Layers that get an adapter: names, patterns with *, or all-linear.",
        rich_help_panel="Method",
    ),
    adapter: Path | None = typer.Option(
        None,
        "--adapter",
        help="PEFT folder of an adapter to go on training, or with --merge to merge.",
        rich_help_panel="Method",
    ),
    merge: bool = typer.Option(
        False,
        "--merge",
        help="Merge --adapter into MODEL and train nothing.",
        rich_help_panel="Method",
    ),
    lr: float | None = typer.Option(
        None,
        "--lr",
        help="Peak learning rate. \\[default: 2e-4; full: 2e-5]",
        rich_help_panel="Training",
    ),
    lora_plus: float = typer.Option(
        1.0,
        "--lora-plus",
        help="How many times as large the learning rate of the matrix B is as that of A (LoRA+).",
        rich_help_panel="Training",
    ),
    epochs: int = typer.Option(
        1, "--epochs", help="How often the data is gone through.", rich_help_panel="Training"
    ),
    max_steps: int | None = typer.Option(
        None,
        "--max-steps",
        help="Stop after so many steps, instead of --epochs.",
        rich_help_panel="Training",
    ),
    batch_size: int = typer.Option(
        4, "--batch-size", help="Sequences in a micro-batch.", rich_help_panel="Training"
    ),
    accumulate: int = typer.Option(
        1, "--accumulate", help="Micro-batches in a step.", rich_help_panel="Training"
    ),
    max_seq_len: int = typer.Option(
        512, "--max-seq-len", help="Longest sequence, in tokens.", rich_help_panel="Data"
    ),
    packing: bool = typer.Option(
        True,
        "--packing/--no-packing",
        help="Fill sequences with several documents, which do not see each other.",
        rich_help_panel="Data",
    ),
    schedule: str = typer.Option(
        "cosine",
        "--schedule",
        help="How the learning rate falls: cosine, linear or constant.",
        rich_help_panel="Training",
    ),
    warmup: float = typer.Option(
        0.03,
        "--warmup",
        help="Steps in which the learning rate rises; below 1, a share of all steps.",
        rich_help_panel="Training",
    ),
    weight_decay: float = typer.Option(
        0.0, "--weight-decay", help="Weight decay of AdamW.", rich_help_panel="Training"
    ),
    max_grad_norm: float = typer.Option(
        1.0,
        "--max-grad-norm",
        help="Largest norm of the gradient; longer ones are scaled down, 0 leaves them.",
        rich_help_panel="Training",
    ),
    eval_data: Annotated[
        list[str] | None,
        typer.Option(
            "--eval-data", help="Held-out data, measured after every epoch.", rich_help_panel="Data"
        ),
    ] = None,
    eval_split: float = typer.Option(
        0.0,
        "--eval-split",
        help="Hold out this share of --data instead, as 0.05.",
        rich_help_panel="Data",
    ),
    patience: int | None = typer.Option(
        None,
        "--patience",
        help="Stop after so many epochs without a better evaluation.",
        rich_help_panel="Training",
    ),
    save_every: int = typer.Option(
        50, "--save-every", help="Steps from one checkpoint to the next.", rich_help_panel="Output"
    ),
    dtype: str = typer.Option(
        "auto",
        "--dtype",
        help="bf16 or fp32 (auto: bf16); what is learned is kept in fp32.",
        rich_help_panel="Training",
    ),
    seed: int = typer.Option(
        0, "--seed", help="The same seed gives the same run.", rich_help_panel="Training"
    ),
    chat: bool = typer.Option(
        False,
        "--chat",
        help="Put prompt and completion in the chat template.",
        rich_help_panel="Data",
    ),
    skip_bad_rows: bool = typer.Option(
        False,
        "--skip-bad-rows",
        help="Leave out rows that cannot be learned from, instead of stopping.",
        rich_help_panel="Data",
    ),
    recompute: bool | None = typer.Option(
        None,
        "--recompute/--no-recompute",
        help="Take less memory: compute layers again in the backward pass. \\[default: with qlora]",
        rich_help_panel="Training",
    ),
    keep_mask: bool = typer.Option(
        False,
        "--keep-mask",
        help="For a pruned model: weights that are zero stay zero.",
        rich_help_panel="Method",
    ),
    fim_rate: float = typer.Option(
        0.0,
        "--fim-rate",
        help="Share of the text rows that are learned as gaps to fill in, from 0 to 1.",
        rich_help_panel="Fill in the middle",
    ),
    fim_spm_rate: float | None = typer.Option(
        None,
        "--fim-spm-rate",
        help="Share of those that have the suffix before the prefix. \\[default: 0.5]",
        rich_help_panel="Fill in the middle",
    ),
    fim_level: str = typer.Option(
        "document",
        "--fim-level",
        help="document: cut gaps before documents are split into sequences; context: after it.",
        rich_help_panel="Fill in the middle",
    ),
    fim_tokens: str = typer.Option(
        "",
        "--fim-tokens",
        help="PREFIX,SUFFIX,MIDDLE: the tokens that mark a gap, for a model without its own.",
        rich_help_panel="Fill in the middle",
    ),
    benchmark: str | None = typer.Option(
        None,
        "--benchmark",
        help="Score the model on this benchmark before and after training, as humaneval.",
        rich_help_panel="Scores",
    ),
    benchmark_samples: int = typer.Option(
        1,
        "--benchmark-samples",
        help="Samples of each task; one is greedy, ten give pass@10.",
        rich_help_panel="Scores",
    ),
    benchmark_limit: int | None = typer.Option(
        None, "--benchmark-limit", help="Use only the first tasks.", rich_help_panel="Scores"
    ),
    report_to: str = typer.Option(
        "none",
        "--report-to",
        help="Send metrics to tensorboard or trackio, beside metrics.jsonl.",
        rich_help_panel="Output",
    ),
    plan: bool = typer.Option(
        False,
        "--plan",
        help="Say how much memory and how many steps it would take, and stop.",
        rich_help_panel="Output",
    ),
    show_samples: int = typer.Option(
        0,
        "--show-samples",
        help="Print so many documents, coloured by what is learned, and stop.",
        rich_help_panel="Output",
    ),
    force: bool = typer.Option(
        False, "--force", help="Begin anew in a folder that holds a run.", rich_help_panel="Output"
    ),
    offline: bool = typer.Option(
        False, "--offline", help="Use only what is in the cache.", rich_help_panel="Output"
    ),
    as_json: bool = typer.Option(
        False, "--json", help="Print one JSON object.", rich_help_panel="Output"
    ),
) -> None:
    from apr.cli import training_output as out
    from apr.cli.options import byte_size, fim_token_names, only_flags
    from apr.common.errors import UsageError
    from apr.train.examples import FimSettings
    from apr.train.finetune import finetune as run
    from apr.train.finetune import finished_result
    from apr.train.lora import LoraSettings
    from apr.train.metrics import check_report
    from apr.train.prepare import prepare
    from apr.train.train_settings import FinetuneRequest, TrainSettings

    if show_samples < 0:
        raise UsageError(f"--show-samples is {show_samples}", "it must be 0 or more")
    if output is None and not (plan or show_samples):
        raise UsageError("no folder to write", "-o FOLDER, or --plan to see what would be done")
    if merge:
        from apr.train.adapter_files import merge_adapter

        if adapter is None or output is None:
            raise UsageError("--merge needs --adapter DIR and -o OUT")
        ours = {"model", "output", "adapter", "merge", "force", "offline", "as_json"}
        only_flags(context, ours, "with --merge")
        merged = merge_adapter(model, adapter, output, force=force, offline=offline)
        print(json.dumps(merged)) if as_json else out.show_merged(merged)
        return
    _check_flags(context, method, fim_rate)
    check_report(report_to)
    scores = _scores(benchmark, benchmark_samples, benchmark_limit)
    request = FinetuneRequest(
        model=model,
        data=tuple(data or ()),
        method=method,
        lora=LoraSettings(
            rank, lora_alpha, lora_dropout, rslora, dora,
            tuple(part for part in targets.split(",") if part),
        ),
        train=TrainSettings(
            learning_rate=lr if lr is not None else 2e-5 if method == "full" else 2e-4,
            epochs=epochs,
            max_steps=max_steps,
            batch_size=batch_size,
            accumulate=accumulate,
            schedule=schedule,  # type: ignore[arg-type]
            warmup=warmup,
            weight_decay=weight_decay,
            max_grad_norm=max_grad_norm,
            lora_plus=lora_plus,
            patience=patience,
            save_every=save_every,
            seed=seed,
        ),
        adapter=adapter,
        eval_data=tuple(eval_data or ()),
        eval_split=eval_split,
        dtype="bf16" if dtype == "auto" else dtype,
        max_length=max_seq_len,
        packing=packing,
        chat=chat,
        skip_bad_rows=skip_bad_rows,
        recompute=method == "qlora" if recompute is None else recompute,
        keep_mask=keep_mask,
        memory=byte_size("memory", memory),
        fim=FimSettings(
            fim_rate, fim_spm_rate, fim_level, fim_token_names(fim_tokens)  # type: ignore[arg-type]
        ),
    )  # fmt: skip
    prepared = prepare(request, offline=offline)
    if scores is not None:
        from apr.train.report import check_scores

        check_scores(prepared.request, scores, offline=offline)
    if show_samples:
        out.show_samples(prepared, show_samples, as_json)
        return
    summary = prepared.summary()
    if plan:
        print(json.dumps(summary)) if as_json else out.show_plan(summary, prepared)
        return
    assert output is not None
    if not as_json:
        out.show_plan(summary, prepared, to_stderr=True)
    # A run that was stopped while it was scored, or is to be scored now, is trained already.
    result = finished_result(prepared, output) if scores is not None and not force else None
    if result is None:
        with out.TrainProgress() as progress:
            result = run(
                prepared, output, force=force, on_log=progress.on_line, report_to=report_to
            )
    if scores is not None:
        from apr.train.report import add_scores, score_run

        result["scores"] = score_run(prepared.request, scores, output, offline=offline)
        add_scores(output, result["scores"])
    print(json.dumps(result)) if as_json else out.show_result(result)


def _check_flags(context: typer.Context, method: str, fim_rate: float) -> None:
    """Raises UsageError for a flag that would change nothing."""
    from apr.cli.options import only_flags

    known = {parameter.name or "" for parameter in context.command.params}
    if method == "full":
        lora = {"rank", "lora_alpha", "lora_dropout", "rslora", "dora", "targets", "lora_plus"}
        only_flags(context, known - lora, "with --method full")
    if not fim_rate:
        fim = {"fim_spm_rate", "fim_level", "fim_tokens"}
        only_flags(context, known - fim, "without --fim-rate")


def _scores(benchmark: str | None, samples: int, limit: int | None) -> ScoreRequest | None:
    from apr.common.errors import UsageError

    if benchmark is not None:
        from apr.train.report import ScoreRequest

        return ScoreRequest(benchmark, samples, limit)
    if samples != 1 or limit is not None:
        flag = "limit" if samples == 1 else "samples"
        raise UsageError(f"--benchmark-{flag} without --benchmark", "--benchmark humaneval")
    return None
