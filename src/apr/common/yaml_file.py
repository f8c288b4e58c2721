"""YAML files that people write, with one-line errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from apr.common.errors import UsageError


def read_yaml(path: Path) -> Any:
    """What a file holds. Raises UsageError naming it where it cannot be read or is no YAML."""
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
