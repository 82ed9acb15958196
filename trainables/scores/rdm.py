"""TGSA's teacher guidance at initialisation (Bashivan et al. 2019, arXiv:1808.01405); see `trainables.rdm`."""

import math

from trainables.contracts import NotComputable, Probe
from trainables.rdm import CORRELATIONS, guidance, layer_rdms
from trainables.scores.passes import untouched
from trainables.scores.teacher_side import of_teacher


def score(probe: Probe) -> dict[str, float]:
    """How well a student's taps match the teacher's in which images they find alike, `rdm.pearson` and `rdm.spearman`.

    -1 to 1, and 1 for the same network: the teacher guidance, with either correlation of the dissimilarities. The
    student is taken as it is initialised and in the mode that it is in, as is the teacher, random or trained.

    Raises:
        NotComputable: no teacher, a network without taps, or a layer of the teacher that no layer of the student can be
            compared with, as the dissimilarities of one of them do not vary.
    """
    teacher = of_teacher(probe, "rdm", lambda member: layer_rdms(member, probe.images))
    with untouched(probe.student):
        student = layer_rdms(probe.student, probe.images)
    for role, layers in (("student", student), ("teacher", teacher)):
        if not layers:
            raise NotComputable(f"it compares taps, and the {role} has none")
    values = {f"rdm.{name}": guidance(student, teacher, correlation) for name, correlation in CORRELATIONS.items()}
    if any(map(math.isnan, values.values())):
        raise NotComputable("the images' dissimilarities do not vary in a layer of the teacher, or all the student's")
    return values
