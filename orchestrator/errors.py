"""How a run ends that does not end well. No torch, no Ray."""


class RunFailed(Exception):
    """The run cannot go on; the message is one line that says why."""


class Interrupted(Exception):
    """The stage was interrupted before its end; the run can be resumed."""


class CannotGoOn(Exception):
    """Nothing of the run can go on as it is; the message says why."""
