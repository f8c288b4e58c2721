"""A model as it was asked for, perhaps with an adapter: found and checked, no weight read yet."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from apr.checkpoint import Checkpoint, open_checkpoint
from apr.hub import Pulled, pull
from apr.hub.checksums import fingerprint
from apr.text import Tokenizer, fim_tokens_of, load_tokenizer

if TYPE_CHECKING:
    from apr.checkpoint.adapter import Adapter


@dataclass(frozen=True)
class OpenedModel:
    """ref: as the user wrote it. adapter: what is added to the weights."""

    ref: str
    pulled: Pulled
    adapter: Adapter | None = None

    @property
    def name(self) -> str:
        """What results call it."""
        return self.ref if self.adapter is None else f"{self.ref}+{self.adapter.path.name}"

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Its tensors, with the adapter's update where there is one."""
        base = open_checkpoint(self.pulled.path)
        if self.adapter is None:
            return base
        from apr.model.adapted import adapted_checkpoint

        return adapted_checkpoint(base, self.adapter)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The base's, with the tokens that the adapter was trained to fill gaps with."""
        tokenizer = load_tokenizer(self.pulled.path)
        if self.adapter is not None:
            tokenizer.fim_tokens = fim_tokens_of(self.adapter.path) or tokenizer.fim_tokens
        return tokenizer

    @cached_property
    def fingerprint(self) -> str:
        """16 hexadecimal digits that change when the weights do; the adapter's files are read."""
        base = fingerprint(self.pulled)
        if self.adapter is None:
            return base
        return hashlib.sha256(f"{base} {self.adapter.fingerprint}".encode()).hexdigest()[:16]

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should be told before it runs."""
        return (*self.tokenizer.notes, *([self._other_base] if self._other_base else []))

    def describe(self) -> dict[str, Any]:
        """For the records."""
        value: dict[str, Any] = {"model": self.name, "fingerprint": self.fingerprint}
        if self.adapter is not None:
            value |= {"adapter": str(self.adapter.path), "adapter_base": self.adapter.base}
        return value

    @property
    def _other_base(self) -> str:
        """A word about an adapter that says it was trained on another model.

        Copies and quantizations of a model differ in where they are, so last names are compared
        where one of the two is no place on this disk.
        """
        if self.adapter is None or not (base := self.adapter.base):
            return ""
        theirs, own = Path(base).expanduser(), Path(self.ref).expanduser()
        if theirs.exists() and own.exists():
            same = theirs.resolve() == own.resolve()
        else:
            same = _last(base) == _last(self.ref)
        return "" if same else f"the adapter says it was trained on {base}, not on {self.ref}"


def open_model(
    ref: str, adapter: str | Path | None = None, *, offline: bool = False
) -> OpenedModel:
    """Find a model, and a PEFT adapter for it: a folder, or hf://org/name.

    Raises UsageError and AprError as `pull` does, and where the adapter is none, is of a kind that
    is not covered, or does not fit the model.
    """
    pulled = pull(ref, offline=offline)
    if adapter is None:
        return OpenedModel(ref, pulled)
    from apr.checkpoint.adapter import open_adapter

    remote = str(adapter).startswith("hf://")
    folder = pull(str(adapter), offline=offline).path if remote else Path(adapter)
    opened = OpenedModel(ref, pulled, open_adapter(folder))
    _ = opened.checkpoint  # which checks that they fit
    return opened


def _last(ref: str) -> str:
    return ref.partition("@")[0].rstrip("/").rpartition("/")[2].lower()
