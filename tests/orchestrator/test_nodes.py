"""Joining a cluster, as far as it goes without Ray: addresses, what a node holds, what nodes may differ in."""

import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from orchestrator import nodes
from orchestrator.cluster import check_address
from orchestrator.disk import sweep
from orchestrator.errors import RunFailed
from orchestrator.nodes import Answer, complaints, held
from orchestrator.specs import Resources
from spaces import BadInput
from trainables.store import Store


@pytest.mark.parametrize("address", ["ray://127.0.0.1:10001", "http://127.0.0.1:8265"])
def test_an_address_of_another_kind_is_refused_with_what_to_do(address: str) -> None:
    with pytest.raises(BadInput, match="dux submit RECIPE --address http://HOST:8265"):
        check_address(address)


def test_nobody_at_an_address_is_said_soon() -> None:
    with socket.socket() as nobody:  # bound, and not listening
        nobody.bind(("127.0.0.1", 0))
        started = time.monotonic()
        with pytest.raises(RunFailed, match=r"no Ray cluster answers at 127\.0\.0\.1:\d+: Connection refused"):
            check_address(f"127.0.0.1:{nobody.getsockname()[1]}")
    assert time.monotonic() - started < 20


def test_what_is_no_address_is_refused() -> None:
    with pytest.raises(BadInput, match="a cluster's address is auto or HOST:PORT"):
        check_address("nonsense")


@pytest.mark.parametrize(
    ("node", "cpu", "gpu", "trials"),
    [
        ({"CPU": 8}, 1, 0, 8),
        ({"CPU": 8}, 3, 0, 2),
        ({"CPU": 1}, 0.1, 0, 10),
        ({"CPU": 8}, 1, 0.5, 0),
        ({"CPU": 8, "GPU": 2}, 1, 1, 2),
        ({"CPU": 8, "GPU": 3}, 1, 2, 1),
        ({"CPU": 8, "GPU": 2}, 1, 0.4, 4),  # two on each GPU: a fifth would lie across both
        ({"CPU": 8, "GPU": 2}, 1, 0.75, 2),
        ({"CPU": 2, "GPU": 2}, 1, 0.25, 2),
        ({"GPU": 2}, 1, 1, 0),
    ],
)
def test_a_node_holds_whole_trials(node: dict[str, float], cpu: float, gpu: float, trials: int) -> None:
    assert held(node, Resources(cpu=cpu, gpu=gpu)) == trials


def test_two_halves_on_two_nodes_hold_no_whole_trial() -> None:
    assert sum(held({"CPU": 0.5}, Resources(cpu=1)) for _ in range(2)) == 0


def test_a_node_that_differs_is_named_with_what_differs() -> None:
    here = {"dux-search": "0.1.0", "ray": "2.60.0", "torch": "2.9.0", "Python": "3.11"}
    answers = {
        "good": Answer(versions=here),
        "old": Answer(versions={**here, "torch": "2.8.0", "Python": "3.12"}),
        "blind": Answer("does not see /shared/a"),
    }
    assert complaints(answers, here) == [
        "node old has torch 2.8.0 (here 2.9.0), Python 3.12 (here 3.11)",
        "node blind does not see /shared/a",
    ]


def test_what_a_killed_driver_asked_its_nodes_is_swept_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, asked = tmp_path / "run", []

    def killed(store: Store, token: str, found: list[str]) -> None:
        for node in found:
            asked.append(nodes._look(store, token, node))
        raise KeyboardInterrupt

    about = {"NodeManagerHostname": "host", "NodeManagerAddress": "127.0.0.1", "Alive": True}
    monkeypatch.setattr(nodes.ray, "nodes", lambda: [{**about, "NodeID": name * 56} for name in "ab"])
    monkeypatch.setattr(nodes, "_asked", killed)
    run.mkdir()
    store = Store(str(run))
    monkeypatch.setattr(Store, "remove", lambda store, name: None)  # as if the kill came before
    with pytest.raises(KeyboardInterrupt):
        nodes.check_nodes(SimpleNamespace(store=store, address=run))
    assert [answer.problem for answer in asked] == [None, None]
    assert len(list(run.iterdir())) == 3
    sweep(run)
    assert list(run.iterdir()) == []
