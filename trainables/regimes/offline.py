"""Learning from frozen teachers, and from nobody."""

from trainables.declare import Program, program
from trainables.regimes.kit import Kit


def plain(kit: Kit) -> Program:
    """No teacher: the losses that look at labels only, for as many epochs."""
    return _alone(kit, teacher=False)


def offline(kit: Kit) -> Program:
    """A frozen teacher, computed once for all students (Hinton et al. 2015, arXiv:1503.02531)."""
    return _alone(kit, teacher=bool(kit.teachers))


def _alone(kit: Kit, teacher: bool) -> Program:
    student = kit.network()
    terms = kit.terms() if teacher else kit.supervised()
    return program(student, terms, kit.epochs)
