"""Taking a trained student out of a run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save

from trainables.files import replacing


def save_student(checkpoint: Mapping[str, Any], folder: Path, description: Mapping[str, Any]) -> None:
    """Write a checkpoint's weights (`weights.safetensors`) and what they belong to (`student.json`) to `folder`."""
    weights = {name: tensor.contiguous() for name, tensor in checkpoint["fit"]["deployed"].items()}
    with replacing(folder / "weights.safetensors") as temporary:
        temporary.write_bytes(save(weights))  # not by `save_file`, which says of a full disk only that it failed
    with replacing(folder / "student.json") as temporary:
        temporary.write_text(json.dumps(description, indent=1) + "\n")
