"""What dux's training loop costs beside a bare PyTorch loop over tensors that are already there.

    python benchmarks/throughput.py [--quick] [--device cuda]

Images a second of `Fit.run_epoch` over those of the plainest loop with the same network, layout of memory, optimiser
and loss (cross-entropy and kd). dux draws the order, crops and flips images, normalises them, sets the learning rate of
each step, sums up the losses, and takes the teacher's outputs from a file in which they lie by then; the bare loop has
one batch of random, normalised images and one of logits in memory. Neither evaluates. A ResNet-20 on 32 x 32 pixels in
batches of 128, and a network of the quickstart's size on digits in batches of 32.

Each round is a fresh process, since where one lies in memory makes it a few percent faster or slower; in it both sides
take turns. Last line: `over_bare_loop` of the ResNet-20 and `digits_over_bare_loop` (medians over all turns), and both
by processor time, which other work on the machine disturbs less.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before this folder, which has an analysis.py of its own

if TYPE_CHECKING:
    from trainables.contracts import Data, Member

SIDES = ("dux", "bare")
WEIGHTS = {"cross_entropy": 0.1, "kd": 0.9}
Train = Callable[[int], object]  # an epoch, given its number


@dataclass(frozen=True)
class Case:
    """A network, the random images that it is trained on, and in how many turns of so many steps.

    Args:
        blocks: residual blocks a stage.
        images: of a turn; a whole number of batches.
    """

    blocks: int
    width: int
    shape: tuple[int, int, int]
    batch: int
    augment: dict[str, Any]
    images: int
    turns: int


CASES = {
    "resnet20": Case(3, 16, (3, 32, 32), 128, {"crop": 4, "flip": True}, 3 * 128, 3),
    "digits": Case(1, 5, (1, 8, 8), 32, {"crop": 1}, 60 * 32, 6),
}


def member_of(case: Case, device: str, seed: int) -> tuple["Member", "Data"]:
    """A network, and the random images of an epoch."""
    import numpy as np
    import torch

    import spaces
    from trainables.contracts import Data, Member, Split
    from trainables.fit import memory_format

    rng, channels = np.random.default_rng(0), case.shape[0]
    images = rng.integers(0, 256, (case.images, *case.shape), dtype=np.uint8)
    split = Split(images, rng.integers(0, 10, case.images))
    data = Data("random", split, split, split, tuple("0123456789"), (0.5,) * channels, (0.29,) * channels, "random")
    space = spaces.get("resnet")
    arch = {"depth1": case.blocks, "depth2": case.blocks, "depth3": case.blocks, "width": case.width}
    torch.manual_seed(seed)
    member = Member.of(space, space.build(arch, data.task), data).to(device)
    return member.to(memory_format=memory_format(member.net, torch.device(device))), data


def dux_loop(case: Case, device: str, folder: Path, epochs: int) -> Train:
    """dux's, with the teacher's outputs of so many epochs in the folder."""
    import torch

    from trainables import losses
    from trainables.curriculum import Augment, Curriculum
    from trainables.declare import program
    from trainables.fit import Fit, OptimizerConfig
    from trainables.teacher_outputs import TeacherOutputs

    (teacher, data), (student, _) = member_of(case, device, 1), member_of(case, device, 0)
    teacher = teacher.eval().requires_grad_(False)
    curriculum = Curriculum(data.train, 10, 0, case.batch, Augment(**case.augment), torch.device(device))
    terms = losses.make_terms(WEIGHTS, *(losses.shapes_of(one, data.task) for one in (student, teacher)))
    outputs = TeacherOutputs(lambda: teacher, "0", "0", curriculum, ["logits"], folder)
    for epoch in range(1, epochs + 1):
        next(outputs.epoch(epoch))
    fit = Fit(program(student, terms, epochs), curriculum, {"teacher": outputs}, OptimizerConfig(), 0)
    return lambda epoch: fit.run_epoch(epoch)


def bare_loop(case: Case, device: str) -> Train:
    """The plainest one."""
    import torch
    from torch.nn import functional as F

    from trainables.fit import memory_format

    net = member_of(case, device, 0)[0].net
    matrices, vectors = ([p for p in net.parameters() if (p.ndim > 1) == many] for many in (True, False))
    groups = [{"params": matrices, "weight_decay": 5e-4}, {"params": vectors, "weight_decay": 0.0}]
    optimizer = torch.optim.SGD(groups, lr=0.01, momentum=0.9, nesterov=True, fused=True)
    images = torch.randn(case.batch, *case.shape, device=device)
    images = images.contiguous(memory_format=memory_format(net, torch.device(device)))
    labels, taught = torch.randint(10, (case.batch,), device=device), torch.randn(case.batch, 10, device=device)

    def train(epoch: int) -> None:
        net.train()
        for _ in range(case.images // case.batch):
            logits = net(images)
            soft = [(outputs / 4).log_softmax(1) for outputs in (logits, taught)]
            kd = 16 * F.kl_div(*soft, reduction="batchmean", log_target=True)
            loss = WEIGHTS["cross_entropy"] * F.cross_entropy(logits, labels) + WEIGHTS["kd"] * kd
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        loss.item()  # waits for the device, as the mean loss of dux's epoch does

    return train


def case_of(name: str, quick: bool) -> Case:
    """A case, shortened where it is to be quick."""
    case = CASES[name]
    return replace(case, images=case.images // 3) if quick else case


def serve(case: Case, device: str) -> None:
    """Let both sides take turns, and print the seconds of each: by the clock, and of the processor."""
    import torch

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        loops = {"dux": dux_loop(case, device, Path(folder), case.turns + 1), "bare": bare_loop(case, device)}
        rows = []
        for epoch in range(1, case.turns + 2):
            row = {}
            for side in (SIDES, SIDES[::-1])[epoch % 2]:
                began = time.perf_counter(), time.process_time()
                loops[side](epoch)
                row[side] = time.perf_counter() - began[0], time.process_time() - began[1]
            rows.append(row)
    print(json.dumps({"rows": rows[1:], "torch": torch.__version__}))  # the first steps of a process are slow


def measure(name: str, quick: bool, device: str) -> dict[str, Any]:
    """One round: the rows of a fresh process."""
    command = [sys.executable, __file__, "--serve", name, "--device", device, *(["--quick"] if quick else [])]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Measure, print a table, and the figures as JSON in the last line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter turns: under a minute on two cores")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(case_of(arguments.serve, arguments.quick), arguments.device)
        return
    rounds = 1 if arguments.quick else 4
    rows: dict[str, list[dict[str, list[float]]]] = {name: [] for name in CASES}
    for _ in range(rounds):
        for name in CASES:
            found = measure(name, arguments.quick, arguments.device)
            rows[name] += found["rows"]
    print(f"{'':<10}{'dux':>16}{'bare':>16}{'dux over bare':>16}{'quartiles':>18}{'by processor time':>20}")
    figures: dict[str, Any] = {}
    for name in CASES:
        images = case_of(name, arguments.quick).images
        rates = [images / statistics.median(row[side][0] for row in rows[name]) for side in SIDES]
        over, by_processor = ([row["bare"][clock] / row["dux"][clock] for row in rows[name]] for clock in (0, 1))
        low, middle, high = statistics.quantiles(over, n=4, method="inclusive")
        line = "".join(f"{rate:>9,.0f} images/s"[:18] for rate in rates)
        cpu = statistics.median(by_processor)
        print(f"{name:<10}{line}{middle:14.3f}{low:>10.3f} - {high:.3f}{cpu:20.3f}")
        key = "over_bare_loop" if name == "resnet20" else f"{name}_over_bare_loop"
        figures |= {key: round(middle, 3), f"{key}_cpu": round(cpu, 3)}
    print(f"\ntorch {found['torch']}, {arguments.device}, one thread of {os.cpu_count()} CPUs")
    print(json.dumps({**figures, "n": len(rows["resnet20"])}))


if __name__ == "__main__":
    main()
