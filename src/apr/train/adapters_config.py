"""--adapters-config FILE: adapters that are trained side by side on one frozen model.

adapters:
  - name: docs              # of its folder
    data: docs.jsonl        # or a list; whatever is left out is what the flags say
    rank: 8
    lora_alpha: 16
    rslora: false
    targets: all-linear     # or a list
    lr: 1.0e-4
    seed: 1
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from apr.common.errors import UsageError
from apr.common.yaml_file import read_yaml
from apr.train.lora import EMBEDDING, OUTPUT_LAYER
from apr.train.request import FinetuneRequest

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*")
# What a run's folder holds beside its adapters.
_TAKEN = ("best", "last", "checkpoints")
_KINDS: dict[str, tuple[type, ...]] = {
    "name": (str,),
    "data": (str, list),
    "rank": (int,),
    "lora_alpha": (int, float),
    "rslora": (bool,),
    "targets": (str, list),
    "lr": (int, float),
    "seed": (int,),
}


def read_adapters(path: Path, request: FinetuneRequest) -> dict[str, FinetuneRequest]:
    """Name -> what is to be trained, in the file's order. request: what the flags say.

    Raises UsageError naming file, adapter and field.
    """
    _check(request)
    content = read_yaml(path)
    rows = content.get("adapters") if isinstance(content, dict) else None
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"{path} has no list of adapters", "adapters: [{name: a, data: a.jsonl}]")
    found: dict[str, FinetuneRequest] = {}
    for number, row in enumerate(rows, 1):
        where = f"{path}: adapter {number}"
        if not isinstance(row, dict):
            raise UsageError(f"{where} is no mapping", "it needs at least a name")
        for key, value in row.items():
            _check_field(where, key, value)
        name = row.get("name", "")
        if not _NAME.fullmatch(name) or name in _TAKEN or name in found:
            raise UsageError(f"{where}: the name {name!r} cannot be used", "each needs its own")
        found[name] = _request(where, row, request)
    return found


def _check(request: FinetuneRequest) -> None:
    """What cannot be shared, or would make a run depend on what it is trained beside."""
    refused = {
        f"--method {request.method}": request.method not in ("lora", "qlora"),
        "--adapter": request.adapter is not None,
        "--keep-mask": request.keep_mask,
        "--dora": request.lora.dora,
        "--lora-dropout": request.lora.dropout > 0,
        "--accumulate": request.train.accumulate > 1,
    }
    for flag, given in refused.items():
        if given:
            raise UsageError(f"{flag} does not go with --adapters-config")


def _check_field(where: str, key: Any, value: Any) -> None:
    kinds = _KINDS.get(key)
    if kinds is None:
        raise UsageError(f"{where} has an unknown field {key}", f"known: {', '.join(_KINDS)}")
    number = isinstance(value, bool) and bool not in kinds
    texts = not isinstance(value, list) or all(isinstance(part, str) for part in value)
    if not isinstance(value, kinds) or number or not texts or value == []:
        raise UsageError(f"{where}: {key} is {value!r}")


def _request(where: str, row: Mapping[str, Any], request: FinetuneRequest) -> FinetuneRequest:
    lora, train, data = request.lora, request.train, request.data
    try:
        lora = replace(
            lora,
            rank=row.get("rank", lora.rank),
            alpha=float(row.get("lora_alpha", lora.alpha)),
            rslora=row.get("rslora", lora.rslora),
            targets=_list(row["targets"], ",") if "targets" in row else lora.targets,
        )
        train = replace(
            train,
            learning_rate=float(row.get("lr", train.learning_rate)),
            seed=row.get("seed", train.seed),
        )
        if "data" in row:
            data = _list(row["data"])
        if not data:
            raise UsageError("no training data", "data: FILE, or --data FILE for all adapters")
    except UsageError as error:
        raise UsageError(f"{where}: {error.message}", error.hint) from None
    for layer in (OUTPUT_LAYER, EMBEDDING):
        if any(layer in target for target in lora.targets):
            raise UsageError(f"{where}: {layer} cannot be shared", "leave it out of targets")
    return replace(request, lora=lora, train=train, data=data)


def _list(value: str | list[str], separator: str | None = None) -> tuple[str, ...]:
    if isinstance(value, list):
        return tuple(value)
    return tuple(value.split(separator)) if separator else (value,)
