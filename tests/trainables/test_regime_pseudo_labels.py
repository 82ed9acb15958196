"""Labels made between epochs: by a student for images that have none, and by clusters of what a teacher says."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from bitwise import through_a_file
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor
from torch.nn import functional as F

import spaces
from spaces import BadInput
from trainables.contracts import Data, Member, Outputs
from trainables.curriculum import Augment, Curriculum
from trainables.data import DataConfig, load
from trainables.evaluate import predict
from trainables.fit import Fit, OptimizerConfig, Step
from trainables.losses.cross_entropy import cross_entropy
from trainables.regimes import REGIMES, Kit, declare
from trainables.regimes.pseudo_labels import cluster_means, kmeans, noised, pseudo_labelled
from trainables.teacher_outputs import TeacherOutputs

CPU = torch.device("cpu")
RESNET = spaces.get("resnet")
ARCH = {"depth1": 1, "depth2": 1, "depth3": 1, "width": 2}
CE: dict[str, Any] = {"cross_entropy": 1.0}
NOISY = {"name": "noisy_student", "labelled": 0.5, "generations": 2}
TAUGHT = {**NOISY, "first": "teacher"}
CLUSTERED = {"name": "clustered_labels"}
EPOCHS = 6  # for NOISY two to each generation


@pytest.fixture(scope="module")
def data() -> Data:
    return load(DataConfig(subset=80, valid=20, test_subset=20))


@pytest.fixture(scope="module")
def teacher(data: Data) -> Member:
    torch.manual_seed(1)
    return Member.of(RESNET, RESNET.build({**ARCH, "width": 4}, data.task), data).eval().requires_grad_(False)


def kit_of(data: Data, regime: Mapping[str, Any], teacher: Member | None, losses: Any = None, epochs: int = 0) -> Kit:
    teachers = {"teacher": lambda: teacher} if teacher else {}
    return Kit(data, RESNET, ARCH, losses or REGIMES[regime["name"]].losses, epochs or EPOCHS, teachers=teachers)


def fit_of(data: Data, regime: dict[str, Any], teacher: Member, losses: Any = None) -> Fit:
    program = declare(regime, kit_of(data, regime, teacher, losses))
    curriculum = Curriculum(data.train, 10, 0, 32, Augment(crop=1), CPU)
    views = program.views_of("teacher")
    outputs = {"teacher": TeacherOutputs(lambda: teacher, "t", data.fingerprint, curriculum, views, None)}
    return Fit(program, curriculum, outputs, OptimizerConfig(learning_rate=0.05), 7)


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def pool_of(fit: Fit) -> Tensor:
    view = fit.program.views["pool"]
    assert isinstance(view, partial)
    return view.keywords["chosen"]


def test_going_on_from_any_epoch_is_not_stopping_where_the_teacher_is_generation_0(data, teacher) -> None:
    regime = {**TAUGHT, "hard": True}
    before = copy.deepcopy(teacher.state_dict())
    whole = fit_of(data, regime, teacher)
    states, reports = [], []
    for epoch in range(1, EPOCHS + 1):
        reports.append(whole.run_epoch(epoch).losses)
        states.append(through_a_file(whole.state_dict()))
    for epoch, state in enumerate(states[:-1], start=1):
        torch.manual_seed(epoch)  # what others draw in between does not matter
        resumed = fit_of(data, regime, teacher)
        resumed.load_state_dict(state)
        assert [resumed.run_epoch(later).losses for later in range(epoch + 1, EPOCHS + 1)] == reports[epoch:]
        assert same(resumed.members.state_dict(), whole.members.state_dict())
        assert same(resumed.tables, whole.tables)
    assert same(teacher.state_dict(), before)


def test_only_the_student_learns_where_the_teacher_is_generation_0(data, teacher) -> None:
    fit = fit_of(data, TAUGHT, teacher, {"cross_entropy": 0.5, "dkd": 1.0})
    assert set(fit.members) == {"student"}
    phase = fit.program.phases[-1]
    for action in phase.begin:
        action(fit)
    run = fit._enter(phase)
    run.set_modes()
    step = Step(run, next(fit.curriculum.batches(1)), {})
    seen = 0
    for term in phase.terms:
        assert term.learners() == {"student"}
        found = torch.autograd.grad(
            step.value(term), list(fit.student.parameters()), allow_unused=True, retain_graph=True
        )
        assert any(gradient is not None and gradient.any() for gradient in found), term.name
        seen += 1
    assert seen == 3
    assert all(not parameter.requires_grad and parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize(
    ("regime", "losses", "epochs", "rule"),
    [
        (
            {"name": "noisy_student", "labelled": 1.0},
            None,
            8,
            "labelled: 1.0 of 80 images leaves no pool of unlabelled",
        ),
        ({"name": "noisy_student", "labelled": 0.999}, None, 8, "leaves no pool of unlabelled images"),
        ({"name": "noisy_student", "labelled": 0.001}, None, 8, "leaves no labelled images"),
        ({"name": "noisy_student", "labelled": 1.5}, None, 8, "labelled must be a number from 0 to 1"),
        ({"name": "noisy_student", "generations": 0}, None, 8, "generations must be an integer from 1"),
        ({"name": "noisy_student", "generations": 3}, None, 3, "epochs must be at least 4"),
        ({"name": "noisy_student", "first": "teacher"}, None, 8, "first: teacher needs a teacher"),
        ({"name": "noisy_student"}, {**CE, "sp": 1.0}, 8, "'noisy_student' compares logits, and loss 'sp' does not"),
        ({"name": "noisy_student"}, {"kd": 1.0}, 8, "'noisy_student' needs a loss of labels"),
        ({"name": "clustered_labels"}, None, 8, "regime 'clustered_labels' needs a teacher"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(data, regime, losses, epochs, rule) -> None:
    with pytest.raises(BadInput) as caught:
        declare(regime, kit_of(data, regime, None, losses, epochs))
    assert rule in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_teacher_of_other_classes_is_refused(data) -> None:
    task = replace(data.task, classes=7)
    net = RESNET.build(ARCH, task)
    other = Member(net, *RESNET.look(net, task), data.mean, data.std).eval()
    for regime in (TAUGHT, CLUSTERED):
        with pytest.raises(BadInput, match="teacher knows 7 classes, the data has 10"):
            declare(regime, kit_of(data, regime, other))


# Noisy Student


def test_the_predecessor_labels_the_pool_once_from_clean_images(data, teacher) -> None:
    fit = fit_of(data, NOISY, teacher)
    tables, students = [], []
    for epoch in range(1, EPOCHS + 1):
        fit.run_epoch(epoch)
        tables.append(fit.tables.get("pseudo"))
        students.append(predict(fit.student, data.train, CPU).logits)
    assert tables[0] is None
    assert tables[1] is None
    for begins in (2, 4):
        assert torch.equal(tables[begins], students[begins - 1])
        assert torch.equal(tables[begins + 1], tables[begins])
    assert not torch.equal(tables[4], tables[2])


def test_the_recipes_teacher_may_be_generation_0(data, teacher) -> None:
    fit = fit_of(data, TAUGHT, teacher)
    assert [phase.epochs for phase in fit.program.phases] == [3, 3]
    own = copy.deepcopy(fit.student.state_dict())
    for action in fit.program.phases[0].begin:
        action(fit)
    assert torch.equal(fit.tables["pseudo"], predict(teacher, data.train, CPU).logits)
    assert same(fit.student.state_dict(), own)  # it has learned nothing that it would have to forget


def test_generation_0_learns_from_labels_at_full_weight(data, teacher) -> None:
    phases = fit_of(data, NOISY, teacher, {"cross_entropy": 0.1, "kd": 0.9}).program.phases
    weights = [{term.name: term.weight for term in phase.terms} for phase in phases]
    assert weights[0] == {"cross_entropy": 1.0}
    assert weights[1] == weights[2] == {"cross_entropy": 0.1, "pool.cross_entropy": 0.1, "pool.kd": 0.9}


def test_each_generation_begins_anew(data, teacher) -> None:
    fit = fit_of(data, NOISY, teacher)
    starts = [copy.deepcopy(fit.student.state_dict())]
    for phase in fit.program.phases[1:]:
        for action in phase.begin:
            action(fit)
        starts.append(copy.deepcopy(fit.student.state_dict()))
    again = fit_of(data, NOISY, teacher)
    for number, start in enumerate(starts):
        assert not any(torch.equal(start["net.fc.weight"], other["net.fc.weight"]) for other in starts[:number])
        for action in again.program.phases[number].begin:
            action(again)
        assert same(again.student.state_dict(), start)


@pytest.mark.parametrize("losses", [CE, {**CE, "dkd": 1.0, "dist": 1.0}], ids=["labels", "logits"])
def test_nobody_sees_the_labels_of_the_pool(data, teacher, losses) -> None:
    fit = fit_of(data, NOISY, teacher, losses)
    pool = pool_of(fit)
    labels = data.train.labels.copy()
    labels[pool] = (labels[pool] + 1 + np.arange(len(pool)) % 9) % 10
    lied = fit_of(replace(data, train=replace(data.train, labels=labels)), NOISY, teacher, losses)
    assert torch.equal(pool_of(lied), pool)
    for epoch in range(1, EPOCHS + 1):
        assert fit.run_epoch(epoch).losses == lied.run_epoch(epoch).losses
    assert same(fit.members.state_dict(), lied.members.state_dict())
    # Of the labelled images a wrong label matters.
    labels = data.train.labels.copy()
    known = np.setdiff1d(np.arange(len(labels)), pool)
    labels[known] = (labels[known] + 1) % 10
    lied = fit_of(replace(data, train=replace(data.train, labels=labels)), NOISY, teacher, losses)
    lied.run_epoch(1)
    assert not same(fit.members.state_dict(), lied.members.state_dict())


def test_the_images_are_split_alike_in_every_trial(data, teacher) -> None:
    splits = [pool_of(fit_of(data, {**NOISY, "generations": number}, teacher)) for number in (1, 2)]
    assert torch.equal(*splits)
    assert len(splits[0]) == 40
    views = fit_of(data, NOISY, teacher).program.views
    both = torch.cat([views[name].keywords["chosen"] for name in ("labelled", "pool")])
    assert torch.equal(both.sort()[0], torch.arange(80))


def test_noise_is_of_the_images_that_were_chosen(data) -> None:
    curriculum = Curriculum(data.train, 10, 0, 32, Augment(), CPU)
    batch, chosen = next(curriculum.batches(1)), torch.arange(20, 40)
    for noise, dropped in ((0.0, 0.0), (0.2, 0.0), (0.0, 0.3)):
        torch.manual_seed(0)
        found = noised(batch, curriculum, chosen=chosen, noise=noise, dropped=dropped, hidden=bool(noise))
        assert torch.equal(found.index.sort()[0], chosen)  # all, since they are fewer than the batch
        assert torch.equal(found.labels, torch.full((20,), -1) if noise else curriculum.labels[found.index])
        clean = torch.from_numpy(data.train.images[found.index.numpy()]).float() / 255
        assert found.images.min() >= 0
        assert found.images.max() <= 1
        lit = clean > 0
        if dropped:
            assert ((found.images == 0) | (found.images == clean)).all()
            assert (found.images[lit] == 0).float().mean().item() == pytest.approx(0.3, abs=0.05)
        elif noise:
            middle = (clean > 0.4) & (clean < 0.6)  # where nothing is cut off
            assert (found.images - clean)[middle].std().item() == pytest.approx(0.2, abs=0.05)
        else:
            assert torch.equal(found.images, clean)
    assert len(noised(batch, curriculum, chosen=torch.arange(80), noise=0.0, dropped=0.0).index.unique()) == 32


def test_pseudo_labels_are_probabilities_or_the_likeliest_class() -> None:
    torch.manual_seed(0)
    student, told, true = Outputs(torch.randn(5, 4)), Outputs(3 * torch.randn(5, 4)), torch.full((5,), -1)
    log_p = student.logits.log_softmax(1)
    soft = pseudo_labelled(cross_entropy, hard=False)(student, told, true)
    torch.testing.assert_close(soft, -(told.logits.softmax(1) * log_p).sum(1).mean())
    hard = pseudo_labelled(cross_entropy, hard=True)(student, told, true)
    torch.testing.assert_close(hard, F.nll_loss(log_p, told.logits.argmax(1)))


# Clusters


def two_modes(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Logits [90, 3]: 60 images of class 0, of which 20 look like class 1 and 40 like class 2; 30 of class 1."""
    torch.manual_seed(seed)
    modes = torch.tensor([[5.0, 2.0, -1.0], [5.0, -1.0, 2.0]])
    first = modes[[0] * 20 + [1] * 40]
    logits = torch.cat([first, torch.tensor([[0.0, 6.0, 0.0]]).repeat(30, 1)]) + 0.3 * torch.randn(90, 3)
    order = torch.randperm(90)
    labels = torch.cat([torch.zeros(60), torch.ones(30)]).long()
    return logits[order], labels[order]


def test_a_class_of_two_modes_gets_two_means() -> None:
    logits, labels = two_modes()
    means = cluster_means(logits, labels, 2)
    first = labels == 0
    like_1 = first & (logits[:, 1] > logits[:, 2])
    assert like_1.sum() == 20
    for mode in (like_1, first & ~like_1):
        torch.testing.assert_close(means[mode], logits[mode].mean(0).expand_as(means[mode]))
    assert len(means[first].unique(dim=0)) == 2


def test_one_cluster_is_the_class_mean_and_as_many_as_images_are_the_images() -> None:
    logits, labels = two_modes()
    means = cluster_means(logits, labels, 1)
    for label in (0, 1):
        own = labels == label
        torch.testing.assert_close(means[own], logits[own].mean(0).expand_as(means[own]))
    first = labels == 0
    torch.testing.assert_close(cluster_means(logits[first], labels[first], 60), logits[first])


def inertia(points: Tensor, centres: Tensor, cluster: Tensor) -> float:
    return (points - centres[cluster]).pow(2).sum().item()


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(1, 40), clusters=st.integers(1, 6), whole=st.booleans())
def test_kmeans_ends_where_neither_step_helps(seed: int, n: int, clusters: int, whole: bool) -> None:
    torch.manual_seed(seed)
    points = torch.randn(n, 3).double()
    points = points.round() if whole else points  # with many equal points
    clusters = min(clusters, n)
    centres, cluster = kmeans(points, clusters)
    assert centres.shape == (clusters, 3)
    distances = torch.cdist(points, centres)
    torch.testing.assert_close(distances[torch.arange(n), cluster], distances.amin(1), rtol=0, atol=1e-7)
    for own in cluster.unique():
        torch.testing.assert_close(centres[own], points[cluster == own].mean(0))
    again = kmeans(points, clusters)
    assert torch.equal(again[0], centres)


def test_kmeans_finds_what_scikit_learn_finds_where_clusters_are_plain_to_see() -> None:
    torch.manual_seed(0)
    points = (torch.randn(200, 4) + 8 * torch.randn(5, 4)[torch.arange(200) % 5]).double()
    theirs = KMeans(5, n_init=10, random_state=0).fit(points.numpy())
    assert inertia(points, *kmeans(points, 5)) == pytest.approx(theirs.inertia_, rel=1e-6)


def test_the_students_target_is_the_mean_of_its_images_cluster(data, teacher) -> None:
    fit = fit_of(data, {**CLUSTERED, "clusters": 3}, teacher)
    fit.run_epoch(1)
    labels = torch.tensor(data.train.labels)
    means = cluster_means(predict(teacher, data.train, CPU).logits, labels, 3)
    assert torch.equal(fit.tables["means"], means)
    assert all(len(means[labels == label].unique(dim=0)) <= 3 for label in range(10))
    step = Step(fit._enter(fit.program.phases[0]), next(fit.curriculum.batches(2)), {})
    batch = step.batch("shared")
    fit.members.eval()
    found = {term.name: step.value(term).item() for term in fit.terms}["kd"]
    target, own = (means[batch.index] / 4).log_softmax(1), (fit.student(batch.images) / 4).log_softmax(1)
    assert found == pytest.approx(16 * (target.exp() * (target - own)).sum(1).mean().item(), rel=1e-4)


def test_more_clusters_than_images_of_a_class_are_refused(data, teacher) -> None:
    counts = np.bincount(data.train.labels, minlength=10)
    regime = {**CLUSTERED, "clusters": int(counts.min()) + 1}
    with pytest.raises(BadInput) as caught:
        declare(regime, kit_of(data, regime, teacher))
    assert f"clusters must be at most the {counts.min()} images of class" in str(caught.value)
    assert "\n" not in str(caught.value)
    declare({**CLUSTERED, "clusters": int(counts.min())}, kit_of(data, CLUSTERED, teacher))
