"""The reference's log-probabilities: computed once, before training, and kept on disk.

<cache>/reference/<digest>.npy: fp32, the targets of all preferences one after another. The digest
is of the reference (its files, adapter, form and dtype), of every token, and of how they were
batched, so that another run on the same data finds them and a changed one does not.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
import torch

from apr import __version__
from apr.align.preferences import Preference, PreferenceData
from apr.common.files import write_whole
from apr.common.progress import INTERVAL, counted
from apr.hub.cache import cache_root, unwritable
from apr.model.transformer import Transformer
from apr.train.objective import target_logprobs

FOLDER = "reference"


def reference_logprobs(
    data: PreferenceData, identity: dict[str, Any], model: Callable[[], Transformer]
) -> list[np.ndarray]:
    """Log-probabilities of each preference's targets, in nats, under the reference.

    identity: what the reference is. model: the reference itself, asked for where they are not known
    already. Raises AprError where the cache cannot be written.
    """
    sizes = [one.targets for one in data.preferences]
    path = cache_root() / FOLDER / f"{_digest(data, identity)}.npy"
    if path.is_file():
        found = np.load(path)
        if found.shape == (sum(sizes),):
            return _split(found, sizes)
    values = _computed(data, model())
    content = io.BytesIO()
    np.save(content, np.concatenate(values))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue())
    except OSError as error:
        raise unwritable(path, error) from None
    return values


@torch.no_grad()
def _computed(data: PreferenceData, model: Transformer) -> list[np.ndarray]:
    model.eval()
    values: list[np.ndarray] = []
    indices = range(len(data.preferences))
    groups = [indices[i : i + data.batch_size] for i in indices[:: data.batch_size]]
    for group in counted(groups, "batches seen by the reference", interval=INTERVAL):
        batch = data.load(group)
        found = target_logprobs(model, batch.packed).float().cpu().numpy()
        values += _split(found, [data.preferences[i].targets for i in group])
    return values


def _split(values: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    return [values[a:b] for a, b in pairwise(accumulate(sizes, initial=0))]


def _digest(data: PreferenceData, identity: dict[str, Any]) -> str:
    digest = hashlib.sha256()
    known = {**identity, "apr": __version__, "batch_size": data.batch_size}
    digest.update(json.dumps(known, sort_keys=True, default=str).encode())
    for one in data.preferences:
        _add(digest, one)
    return digest.hexdigest()


def _add(digest: Any, one: Preference) -> None:
    digest.update(np.array([len(one.prompt), *map(len, one.answers)], np.int64).tobytes())
    digest.update(one.prompt.astype(np.int32).tobytes())
    for answer in one.answers:
        digest.update(answer.ids.astype(np.int32).tobytes())
        digest.update(answer.trained.tobytes())
