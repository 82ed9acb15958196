"""Taking a trained student out of a run."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from trainables.files import replacing


def save_student(checkpoint: bytes, folder: Path, description: Mapping[str, Any]) -> None:
    """Write a trial's weights (`weights.safetensors`) and what they belong to (`student.json`) to `folder`."""
    state = torch.load(io.BytesIO(checkpoint), map_location="cpu", weights_only=True)["fit"]["deployed"]
    weights = {name: tensor.contiguous() for name, tensor in state.items()}
    with replacing(folder / "weights.safetensors") as temporary:
        save_file(weights, temporary)
    with replacing(folder / "student.json") as temporary:
        temporary.write_text(json.dumps(description, indent=1) + "\n")
