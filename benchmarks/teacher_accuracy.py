"""Accuracy of published CIFAR-10 ResNets, read by dux from their files, on the whole test set.

    python benchmarks/teacher_accuracy.py --data FOLDER --teachers FOLDER [--quick]

FOLDER of the data holds train.parquet and test.parquet; that of the teachers resnet20*.th and resnet56*.th, the files
of github.com/akamaster/pytorch_resnet_cifar10. `--quick` takes the first 1,000 test images.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from spaces import BadInput
from trainables import data, teachers
from trainables.contracts import Member, Split

BLOCKS = {"resnet56": 9, "resnet20": 3}  # in each of the three stages
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def accuracy_percent(member: Member, split: Split, batch: int = 250) -> float:
    """Share of images whose largest logit is their label's."""
    right = 0
    with torch.inference_mode():
        for start in range(0, len(split), batch):
            images = torch.from_numpy(np.array(split.images[start : start + batch])).float() / 255
            labels = torch.from_numpy(np.array(split.labels[start : start + batch]))
            right += int((member(images).argmax(1) == labels).sum())
    return 100 * right / len(split)


def main() -> None:
    """Measure, print a table, and the figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of train.parquet and test.parquet")
    parser.add_argument("--teachers", required=True, type=Path, help="folder of the weights files")
    parser.add_argument("--quick", action="store_true", help="the first 1,000 test images")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    cifar = data.load(data.DataConfig("parquet", path=arguments.data, subset=10, mean=MEAN, std=STD))
    count = 1000 if arguments.quick else len(cifar.test)
    test = Split(cifar.test.images[:count], cifar.test.labels[:count])
    figures = {}
    print(f"{'teacher':10} {'images':>7} {'accuracy %':>11} {'seconds':>8}")
    for name, blocks in BLOCKS.items():
        files = sorted(arguments.teachers.glob(f"{name}[-.]*"))
        if not files:
            raise BadInput(f"{arguments.teachers}: no file of weights that begins with {name}")
        arch = {"depth1": blocks, "depth2": blocks, "depth3": blocks, "width": 16}
        config = teachers.TeacherConfig(
            space="resnet", arch=arch, options={"shortcut": "pad"}, weights=str(files[0]), mean=MEAN, std=STD
        )
        member = teachers.build(config, cifar).eval()
        teachers.load_weights(member, files[0])
        started = time.perf_counter()
        figures[name] = round(accuracy_percent(member, test), 2)
        print(f"{name:10} {count:7,} {figures[name]:11.2f} {time.perf_counter() - started:8.1f}")
    print(json.dumps(figures))


if __name__ == "__main__":
    try:
        main()
    except BadInput as error:
        sys.exit(f"error: {error}")
