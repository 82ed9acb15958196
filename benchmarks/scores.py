"""What scores without training cost, as multiples of one forward and backward pass of the same network.

    python benchmarks/scores.py [--quick]

Cells of NAS-Bench-201 (16 channels, 5 cells a stage) on 64 random images of 32 x 32, one thread. For each cell and
round the plain pass, every score alone, and the seven together (`SEVEN`, which share one forward pass) are measured
one after the other; a ratio is the median over rounds, then over cells. Both sides have torch's default layout of
memory. A search scores in channels_last where that is safe: `together_channels_last` is so, over the plain pass in the
default layout, and `over_channels_last` over the plain pass in channels_last, which gains more from it than second
derivatives do. Seconds are of the process's own CPU time, so that other work on the machine disturbs them less; a
neighbour on the same core still does, both sides alike.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from statistics import median

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported, which looks at it once
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # before this folder, which has an analysis.py of its own

import numpy as np
import torch
from torch.nn import functional as F

import spaces
from spaces import Task
from spaces.nasbench201 import to_string
from trainables.contracts import Member, Probe
from trainables.scores import SCORES, compute

SEVEN = ("grad_norm", "snip", "plain", "fisher", "jacob_cov", "synflow", "grasp")
TASK = Task(3, 32, 10)
BATCH = 64


def a_probe(arch: dict[str, str], seed: int) -> Probe:
    """A cell's network at initialisation and random images; its teacher is another initialisation."""
    space = spaces.get("nasbench201")
    torch.manual_seed(seed)
    student, teacher = (
        Member(space.build(arch, TASK), space.taps, space.head, [0.5] * 3, [0.25] * 3) for _ in range(2)
    )
    images, labels = torch.rand(BATCH, 3, 32, 32), torch.randint(TASK.classes, (BATCH,))
    return Probe(student.train(), teacher.eval(), images, labels, TASK)


def forward_backward(probe: Probe) -> None:
    """What a step of training costs before the optimiser."""
    probe.student.zero_grad()
    F.cross_entropy(probe.student(probe.images), probe.labels).backward()


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of the process."""
    start = time.process_time()
    work()
    return time.process_time() - start


def measure(probe: Probe, names: list[str], rounds: int) -> tuple[dict[str, float], float]:
    """By name, multiples of the plain pass (median over rounds), and the plain pass's seconds."""
    student = deepcopy(probe.student).to(memory_format=torch.channels_last)
    last = replace(probe, student=student)

    def plain(probe: Probe) -> Callable[[], object]:
        return lambda: forward_backward(probe)

    def scored(names: Sequence[str], probe: Probe) -> Callable[[], object]:
        return lambda: compute(names, probe)

    # What is measured, and what it is compared with.
    works = {name: (scored([name], probe), plain(probe)) for name in names}
    works["together"] = scored(SEVEN, probe), plain(probe)
    works["together_channels_last"] = scored(SEVEN, last), plain(probe)
    works["over_channels_last"] = scored(SEVEN, last), plain(last)
    for work in (plain(probe), plain(last)):
        work()
    ratios: dict[str, list[float]] = {name: [] for name in works}
    passes: list[float] = []
    for _ in range(rounds):
        for name, (work, base) in works.items():
            # The plain pass right before and after: whatever slows the machine for a while slows both.
            before, own, after = (seconds(w) for w in (base, work, base))
            ratios[name].append(own / ((before + after) / 2))
            passes += [before, after] if name != "over_channels_last" else []
    return {name: median(found) for name, found in ratios.items()}, median(passes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one cell, one round")
    parser.add_argument("--cells", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    cells, rounds = (1, 1) if arguments.quick else (arguments.cells, arguments.rounds)
    torch.set_num_threads(1)
    names = [name for name in SCORES if name not in ("params", "flops")]
    rng = np.random.default_rng(0)
    found: list[dict[str, float]] = []
    for cell in range(cells):
        arch = spaces.get("nasbench201").sample(rng)
        ratios, plain = measure(a_probe(arch, cell), names, rounds)
        found.append(ratios)
        print(
            f"{to_string(arch)}: a forward and backward pass {plain:.2f} s, together {ratios['together']:.2f} x",
            flush=True,
        )
    middle = {name: round(median(one[name] for one in found), 2) for name in found[0]}
    print(f"\nx one forward and backward pass (median of {cells} cells, {rounds} rounds, batch {BATCH})")
    for name, ratio in middle.items():
        print(f"{name:<24} {ratio:.2f}")
    print(f"{'the seven one by one':<24} {sum(middle[name] for name in SEVEN):.2f}")
    print(json.dumps({"together_over_forward_backward": middle.pop("together"), **middle}))


if __name__ == "__main__":
    main()
