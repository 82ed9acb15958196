"""The card of an exported student: what `student.json` says, in plain words."""

from collections.abc import Mapping
from typing import Any

from analysis.naming import student_name
from orchestrator.plain_values import printable

Told = Mapping[str, Any]
SHOWN = 20  # classes

LOAD = {
    "safetensors": """\
import json
from pathlib import Path

import spaces  # of dux
import torch
from safetensors.torch import load_file

told = json.loads(Path("student.json").read_text())
space = {space}
net = space.restrict({{}}, **told["options"]).build(told["arch"], spaces.Task(**told["task"]))
net.load_state_dict(load_file("weights.safetensors"))
net.eval()
mean, std = (torch.tensor(told[name])[:, None, None] for name in ("mean", "std"))


def student(images):
    return net((images - mean) / std)  # these weights do not normalise by themselves
""",
    "torch": """\
import torch

student = torch.export.load("student.pt2").module()
""",
    "onnx": """\
import onnxruntime

session = onnxruntime.InferenceSession("student.onnx", providers=["CPUExecutionProvider"])


def student(images):  # a NumPy array
    return session.run(["logits"], {"images": images})[0]
""",
}


def text(told: Told) -> str:
    """The card, in Markdown."""
    parts = (_what(told), _use(told), _numbers(told), _origin(told), _limits(told))
    return "\n".join(f"{part.rstrip()}\n" for part in parts)


def _what(told: Told) -> str:
    deployed = told["cost"].get("deployed") or told["cost"]
    sizes = {"params": "parameters", "flops": "multiply-adds an image", "bytes": "bytes of weights"}
    cost = ", ".join(f"{deployed[name]:,} {unit}" for name, unit in sizes.items() if name in deployed)
    data, teachers = told["provenance"]["data"], told["provenance"]["teachers"]
    by = " and ".join(f"`{_plain(one['name'])}`" for one in teachers)
    taught = f"was taught by {by}" if teachers else "was trained without a teacher"
    lines = [
        f"# {_plain(student_name(told['arch']))}, an image classifier",
        "",
        f"A network of the space `{_plain(told['space'])}` ({cost}) that tells {len(told['classes'])} classes of "
        f"`{_plain(data['name'])}` apart. It {taught} (regime `{told['regime']['name']}`, {told['epochs']} epochs) "
        "and was found by dux, which searches for the student that learns most from a given teacher.",
    ]
    if told["regime"]["name"] == "quantised":
        lines += ["", f"Its weights have few levels (`{told['regime']}`), but are stored here as 32-bit numbers."]
    return "\n".join(lines)


def _use(told: Told) -> str:
    given, classes = told["input"], told["classes"]
    within = "by the network itself" if given["normalised_by_the_network"] else "by whoever loads the weights"
    named = ", ".join(f"`{_plain(name)}`" for name in classes[:SHOWN])
    more = f", ... ({len(classes)} in `student.json`)" if len(classes) > SHOWN else ""
    _, channels, height, width = given["shape"]
    rows = [
        f"- Images: 32-bit floats [B, {channels}, {height}, {width}] in [0, 1] (bytes divided by 255), any number B"
        + (f"; {given['resized']}" if given["resized"] else ""),
        f"- Normalised {within}: (images - {_listed(given['mean'])}) / {_listed(given['std'])}, a value a channel",
        f"- Gives logits [B, {len(classes)}], whose softmax are probabilities, of the classes {named}{more}",
    ]
    file = told.get("space_file")
    space = f'spaces.own.load("{file}")' if file else 'spaces.get(told["space"])'
    code = LOAD[told["format"]].format(space=space) if told["format"] == "safetensors" else LOAD[told["format"]]
    return "\n".join(["## Use", "", *rows, "", "In this folder:", "", "```python", code.rstrip(), "```"])


def _numbers(told: Told) -> str:
    known, data = told["ranking"], told["provenance"]["data"]
    alone = any(name.endswith("_alone") for name in known)
    taught = bool(told["provenance"]["teachers"])
    heads = ["accuracy in %", "with the teacher" if taught else "mean", "this file"]
    heads += ["without", "what the teacher adds"] if alone else []
    rows = [heads, ["---", *["---:"] * (len(heads) - 1)]]
    for split in ("valid", "test"):
        name = f"{split}_accuracy"
        if name in told["metrics"]:
            cells = [f"{split} ({data[split]:,} images)", _percent(known, name), f"{100 * told['metrics'][name]:.2f}"]
            cells += [_percent(known, f"{name}_alone"), _percent(known, f"{name}_delta", "+")] if alone else []
            rows.append(cells)
    lines = ["## Numbers", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
    spread = ", ± their standard deviation" if known["seeds"] > 1 else ""
    lines.append(
        f"Means over n = {known['seeds']} trained from different initial weights{spread}; this file is the best of "
        f"them by the search's objective (initial weights {told['seed']})."
    )
    if taught and not alone:
        lines.append("The same student was not trained without the teacher: what the teacher adds is not known.")
    for one in told["provenance"]["teachers"]:
        if accuracy := (one.get("metrics") or {}).get("test_accuracy"):
            lines.append(f"The teacher `{_plain(one['name'])}` has {100 * accuracy:.2f} % on the test images.")
    return "\n".join(lines)


def _ranked(ranking: Told) -> str:
    """What is said of a rank besides its number, where it is not that by the objective among all."""
    by = f" by `{_plain(ranking['by'])}`" if "by" in ranking else ""
    return by + (f" among those with `{_plain(ranking['where'])}`" if "where" in ranking else "")


def _origin(told: Told) -> str:
    source, versions = told["provenance"], told["provenance"]["dux"]
    compared = told["compared"]
    lines = [
        "## How it was made",
        "",
        "```",
        f"dux run recipe.yaml --name {source['run']}   # dux {versions['searched']}; the recipe is in this folder",
        f"{source['command']}   # dux {versions['exported']}, torch {source['torch']}",
        "```",
        "",
        f"- Rank {told['ranking']['rank']}{_ranked(told['ranking'])} of stage `{source['stage']}` "
        f"of the run `{source['run']}` "
        f"({told['ranking']['trials']:,} trials{'' if source['finished'] else '; it had not ended'}), student "
        f"`{source['hash']}`",
        *(f"- Teacher `{_plain(one['name'])}` ({one['source']}), hash `{one['sha256']}`" for one in source["teachers"]),
        f"- Data `{_plain(source['data']['name'])}`, fingerprint `{source['data']['fingerprint']}`",
        f"- Compared with the student in the run on {compared['images']} test images: logits differ by at most "
        f"{compared['largest_difference']:.1e}",
    ]
    return "\n".join(lines)


def _limits(told: Told) -> str:
    data = told["provenance"]["data"]
    lines = [
        "## Limits",
        "",
        f"- It has learnt from {data['train']:,} images of `{_plain(data['name'])}`. How it does on images of another "
        "kind was not measured, and it has no class for what is none of its classes.",
        f"- Students were chosen on the {data['valid']:,} validation images, so their accuracy there flatters; the "
        "test images were not chosen by.",
        "- Its probabilities are as they came out of training, not calibrated afterwards"
        + (f" (expected calibration error {told['metrics']['test_ece']:.3f})." if _has(told, "test_ece") else "."),
    ]
    return "\n".join(lines)


def _has(told: Told, name: str) -> bool:
    value = told["metrics"].get(name)
    return value is not None and value == value


def _percent(known: Told, name: str, sign: str = "") -> str:
    if name not in known:
        return "-"
    spread = f" ± {100 * known[f'{name}_std']:.2f}" if f"{name}_std" in known else ""
    return f"{100 * known[name]:{sign}.2f}{spread}"


def _listed(values: list[float]) -> str:
    return f"[{', '.join(f'{value:.4g}' for value in values)}]"


def _plain(value: object) -> str:
    """Words of others as one line that is no Markdown."""
    return printable(str(value)).replace("`", "'").replace("|", "/")
