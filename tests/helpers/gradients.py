"""Whom a term's gradient reaches."""

from collections.abc import Callable

from trainables.fit import Fit, PhaseRun, Step


def reached(fit: Fit, part_of: Callable[[str], str]) -> dict[str, set[str]]:
    """By term, after an epoch, the parts of the program that its gradient reaches; `part_of` names a parameter's."""
    fit.run_epoch(1)
    run = fit._run
    assert isinstance(run, PhaseRun)
    run.set_modes()
    found = {}
    for term in fit.terms:
        fit.members.zero_grad(set_to_none=True)
        Step(run, next(fit.curriculum.batches(1)), {}).value(term).backward()
        named = (name for name, p in fit.members.named_parameters() if p.grad is not None and p.grad.any())
        found[term.name] = {part_of(name) for name in named}
    return found
