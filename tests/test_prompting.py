"""Prompts in training."""

import os

import numpy as np
import pytest
import torch
from batchgenerators.dataloading.nondet_multi_threaded_augmenter import NonDetMultiThreadedAugmenter
from batchgenerators.dataloading.single_threaded_augmenter import SingleThreadedAugmenter
from nnunetv2.utilities.default_n_proc_DA import get_allowed_n_proc_DA

from sam3dnet.network.prompt_decoder import ImageFeatures
from sam3dnet.network.prompt_encoder import Query
from sam3dnet.prompts.sampling import corrective_click
from sam3dnet.prompts.types import Box, ClassPrompts, Point
from sam3dnet.training import drawing, prompting, spoiling
from sam3dnet.training.drawing import Question, QuestionDrawer, draw_questions
from sam3dnet.training.loaders import WORKERS, transforming_loader, without_workers
from sam3dnet.training.prompting import (
    PromptAnswer,
    TrainingPrompter,
    dice_of_counts,
    draw_corrections,
    prompted_counts,
)
from sam3dnet.training.spoiling import (
    Mending,
    MissedObject,
    SeenMasks,
    SpoiltPart,
    Waves,
    draw_mending,
    draw_part,
    draw_spoiling,
    draw_waves,
    is_poor,
)
from sam3dnet.training.target_classes import Classes

SHAPE = (6, 14, 12)
LABELS = Classes((1, 2), False, None, (3.0, 0.7, 1.1), (2, 4, 4))


class Answering:
    """Stands for the network: adds what a function of the batch gives, and remembers what it was asked."""

    def __init__(self, correction):
        self.correction = correction
        self.asked = []

    def prompted(self, features, batch, margin_Qzyx):
        self.asked.append(batch)
        return self.correction(batch, margin_Qzyx)


def test_questions_are_not_answered_where_the_label_is_to_be_ignored():
    target = torch.full((1, 1, *SHAPE), 3)
    target[:, 0, :, :6] = 0
    target[:, 0, 1:5, 2:5, 1:9] = 1
    classes = Classes((1, 2), False, 3, (3.0, 0.7, 1.1), (2, 4, 4))
    clicks = [
        point.voxel
        for seed in range(200)
        for question in draw_questions(target, classes, np.random.default_rng(seed))
        for point in question.query.prompts.points
    ]
    assert clicks and all(y < 6 for _, y, _ in clicks)


def make_target(batch_size=2):
    target = torch.zeros(batch_size, 1, *SHAPE)
    target[:, 0, 1:5, 2:12, 1:9] = 1
    target[:, 0, 2:4, 5:8, 3:6] = 2
    return target


def make_features(target, classes=3):
    """Automatic logits that are right everywhere."""
    logits = torch.nn.functional.one_hot(target[:, 0].long(), classes).permute(0, 4, 1, 2, 3) * 10.0
    return ImageFeatures(torch.zeros(len(target), 1, 1, 1, 1), (), (logits,))


def ask(seed, target=None, classes=LABELS, network=None, share=0.5):
    target = make_target() if target is None else target
    network = network or Answering(lambda batch, margin: torch.zeros_like(margin))
    rng = np.random.default_rng(seed)
    prompter = TrainingPrompter(
        draw_questions(target, classes, rng, share), target, classes, draw_corrections(rng), rng
    )
    return network, prompter(network, make_features(make_target(len(target))))


def test_a_share_of_the_images_is_asked_about():
    network, answer = ask(0, make_target(4))
    assert len(set(network.asked[-1].samples)) == 2
    assert answer.margin_Qzyx.shape == (2, *SHAPE)
    assert ask(0, make_target(4), share=1.0)[0].asked[-1].samples == (0, 1, 2, 3)
    assert ask(0, make_target(1))[1].margin_Qzyx.shape == (1, *SHAPE)


def test_the_same_seed_asks_the_same():
    for one, other in zip(ask(5)[0].asked, ask(5)[0].asked, strict=True):
        assert torch.equal(one.points_QP3, other.points_QP3)
        assert one.samples == other.samples
    drawn = {tuple(ask(seed)[0].asked[-1].points_QP3.flatten().tolist()) for seed in range(10)}
    assert len(drawn) > 5


def test_every_class_is_asked_for_and_the_truth_is_that_class():
    classes = set()
    for seed in range(20):
        _, answer = ask(seed)
        classes |= set(answer.class_Q.tolist())
        assert torch.equal(answer.truth_Qzyx[0], make_target()[0, 0] == answer.class_Q[0])
    assert classes == {1, 2}


def test_corrective_clicks_answer_the_present_prediction(monkeypatch):
    monkeypatch.setattr(drawing, "SPOILED_MARGIN", 0.0)
    monkeypatch.setattr(prompting, "SHARE_OF_CLICKS", {1: 1.0})

    def always_misses(batch, margin):
        return torch.full_like(margin, -40.0)

    corrected = 0
    for seed in range(20):
        network, _ = ask(seed, network=Answering(always_misses))
        first, last = network.asked[0], network.asked[-1]
        clicks = [int((batch.polarity_QP >= 0).sum()) for batch in (first, last)]
        assert clicks[1] == clicks[0] + len(network.asked) - 1
        if len(network.asked) > 1:
            corrected += 1
            z, y, x = last.points_QP3[0, clicks[1] - 1].int().tolist()
            assert last.polarity_QP[0, clicks[1] - 1] == 1
            assert make_target()[0, 0, z, y, x] == last.class_Q[0]
    assert corrected > 5


def test_a_spoiled_margin_comes_with_a_click_that_names_the_error(monkeypatch):
    monkeypatch.setattr(drawing, "SPOILED_MARGIN", 1.0)
    monkeypatch.setattr(spoiling, "SHARE_OF_KINDS", {"part": 1.0})
    kinds = set()
    for seed in range(40):
        network, answer = ask(seed)
        if len(network.asked) > 1:
            continue
        wrong = (answer.margin_Qzyx > 0) ^ answer.truth_Qzyx
        if not wrong.any():
            continue
        batch = network.asked[-1]
        last = int((batch.polarity_QP >= 0).sum()) - 1
        z, y, x = batch.points_QP3[0, last].int().tolist()
        missed = bool(answer.truth_Qzyx[0, z, y, x])
        assert wrong[0, z, y, x] or missed
        assert batch.polarity_QP[0, last] == int(missed)
        kinds.add(missed)
    assert kinds == {True, False}


def test_ignored_voxels_are_neither_asked_for_nor_scored():
    target = make_target()
    target[:, 0, 2:4, 5:8, 3:6] = 3
    classes = Classes((1, 2), False, 3, LABELS.spacing_mm, LABELS.token_stride)
    for seed in range(10):
        _, answer = ask(seed, target, classes)
        assert not answer.valid_Qzyx[0, 2:4, 5:8, 3:6].any()
        assert answer.valid_Qzyx.sum() == answer.valid_Qzyx.numel() - 18
        spoiled = PromptAnswer(answer.margin_Qzyx.clone(), answer.truth_Qzyx, answer.valid_Qzyx, answer.class_Q)
        spoiled.margin_Qzyx[0, 2:4, 5:8, 3:6] = 77.0
        assert torch.equal(spoiled.loss(), answer.loss())
        assert torch.equal(spoiled.hard_dice_counts()[1], answer.hard_dice_counts()[1])


def test_regions_are_read_from_their_own_channel():
    labels = make_target()
    target = torch.cat((labels > 0, labels == 2, torch.zeros_like(labels) > 0), 1)
    target[:, 2, 0] = True
    classes = Classes((0, 1), True, 3, LABELS.spacing_mm, LABELS.token_stride)
    _, answer = ask(0, target, classes)
    assert torch.equal(answer.truth_Qzyx[0], target[0, answer.class_Q[0]] & ~target[0, 2])
    assert not answer.valid_Qzyx[0, 0].any() and answer.valid_Qzyx[0, 1:].all()


def test_the_loss_falls_from_wrong_to_right():
    truth = make_target(1)[:, 0] == 1
    valid, class_Q = torch.ones_like(truth), torch.tensor([1])
    right, wrong = (PromptAnswer(sign * (truth * 40.0 - 20), truth, valid, class_Q) for sign in (1.0, -1.0))
    assert right.loss() < 1e-3
    assert wrong.loss() > 10
    assert right.hard_dice_counts()[0] == right.hard_dice_counts()[1]
    assert wrong.hard_dice_counts()[0] == 0


def test_the_dice_with_prompts_is_counted_per_class_over_all_patches():
    truth = make_target(1)[:, 0]
    valid = torch.ones_like(truth, dtype=torch.bool)
    right = PromptAnswer((truth == 1) * 2.0 - 1, truth == 1, valid, torch.tensor([1]))
    nothing = PromptAnswer(torch.full_like(truth, -1.0), truth == 1, valid, torch.tensor([1]))
    assert dice_of_counts(prompted_counts([right], (1, 2))) == [1.0, pytest.approx(np.nan, nan_ok=True)]
    assert dice_of_counts(prompted_counts([right, nothing], (1, 2))) == [
        pytest.approx(2 / 3),
        pytest.approx(np.nan, nan_ok=True),
    ]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_only_the_last_answer_carries_a_gradient(batch_size):
    parameter = torch.nn.Parameter(torch.zeros(()))
    seen = []

    def correction(batch, margin):
        seen.append(torch.is_grad_enabled())
        return margin * 0 + parameter

    _, answer = ask(2, make_target(batch_size), network=Answering(correction))
    answer.loss().backward()
    assert seen[-1] and not any(seen[:-1])
    assert parameter.grad != 0


def test_small_classes_are_asked_for_more_often_than_their_share_and_than_large_ones():
    target = make_target(1)
    small = float((target == 2).sum())
    share = small**-0.5 / (small**-0.5 + float((target == 1).sum()) ** -0.5)
    asked = [ask(seed, target)[1].class_Q.tolist()[0] for seed in range(400)]
    assert np.mean(np.array(asked) == 2) == pytest.approx(share, abs=0.08)
    assert share > 0.7


def test_answers_are_corrected_none_to_three_times():
    drawn = [draw_corrections(np.random.default_rng(seed)) for seed in range(1000)]
    shares = np.bincount(drawn) / len(drawn)
    np.testing.assert_allclose(shares, [0.4, 0.3, 0.2, 0.1], atol=0.05)


def test_each_correction_is_the_corrective_click_on_the_answer_before(monkeypatch):
    monkeypatch.setattr(prompting, "ANYWHERE", 0.0)
    monkeypatch.setattr(prompting, "SHARE_OF_CLICKS", {1: 1.0})
    target = make_target()
    target[0, 0, :, 12:] = 3
    classes = Classes((1, 2), False, 3, LABELS.spacing_mm, LABELS.token_stride)
    disputed = ClassPrompts((Point((2, 3, 2), positive=False),))
    questions = [Question(Query(sample, 1, disputed)) for sample in range(2)]
    generator = torch.Generator().manual_seed(0)
    answers = []

    def correction(batch, margin):
        answers.append(margin + 25 * torch.randn(margin.shape, generator=generator))
        return answers[-1] - margin

    network = Answering(correction)
    prompter = TrainingPrompter(questions, target, classes, 2, np.random.default_rng(0))
    prompter(network, make_features(make_target()))
    for number, batch in enumerate(network.asked[1:]):
        for row in range(2):
            valid = classes.valid(target[row].numpy())
            predicted = (answers[number][row] > 0).numpy() & valid
            truth = classes.truth(target[row].numpy(), 1)
            click = corrective_click(predicted, truth, classes.spacing_mm)
            assert batch.points_QP3[row, number + 1].tolist() == list(click.at)
            assert batch.polarity_QP[row, number + 1] == int(click.positive)


def test_an_error_in_the_margin_is_where_its_click_says_and_leaves_the_rest():
    truth = (make_target()[0, 0] == 1).numpy()
    valid = np.ones_like(truth)
    valid[:, :, 11] = False
    kinds = set()
    for seed in range(200):
        part = draw_part(truth, valid, LABELS.spacing_mm, LABELS.token_stride, np.random.default_rng(seed))
        if part is None:
            continue
        margin = torch.where(torch.from_numpy(truth), 8.0, -8.0)
        before = margin.clone()
        part.apply(margin)
        changed = margin != before
        at = tuple(int(value) for value in part.click.at)
        box = tuple(slice(n, n + size) for n, size in zip(part.low, part.height_zyx.shape, strict=True))
        assert part.height_zyx.max() == 1
        assert part.click.positive == truth[at] == (part.kind != "false")
        assert valid[at] and changed[at]
        assert changed.sum() == changed[box].sum()
        assert (margin[changed] > before[changed]).all() == (part.kind == "false")
        if part.kind == "missed":
            assert (margin[changed] == -part.logit).all()
        kinds.add(part.kind)
    assert kinds == {"false", "missed", "lowered"}


def test_errors_are_parts_whole_objects_and_waves():
    truth = (make_target()[0, 0] == 2).numpy()
    truth[0, 13, 11] = True
    kinds, sizes = set(), set()
    for seed in range(60):
        error = draw_spoiling(truth, ~truth, LABELS.spacing_mm, LABELS.token_stride, np.random.default_rng(seed))
        kinds.add(type(error))
        if isinstance(error, MissedObject):
            margin = torch.where(torch.from_numpy(truth), 8.0, -8.0)
            error.apply(margin)
            changed = (margin != torch.where(torch.from_numpy(truth), 8.0, -8.0)).numpy()
            assert (margin[torch.from_numpy(changed)] == -error.logit).all()
            assert (changed & ~truth).sum() > 3  # the outline of what is missed does not show
            missed = truth & changed
            sizes.add(int(missed.sum()))
    assert kinds >= {MissedObject, SpoiltPart, Waves}
    assert sizes >= {1, 18}


def test_waves_are_smooth_and_as_high_as_drawn():
    waves = draw_waves((9, 40, 30), (2, 4, 4), np.random.default_rng(1))
    margin = torch.ones(9, 40, 30)
    waves.apply(margin)
    assert margin[0, 0, 0] == pytest.approx(1 + waves.coarse_zyx[0, 0, 0], abs=1e-5)
    assert margin[-1, -1, -1] == pytest.approx(1 + waves.coarse_zyx[-1, -1, -1], abs=1e-5)
    assert margin.std() > 0.4
    assert margin.diff(n=2, dim=1).abs().mean() < 0.3 * margin.std()


def test_a_poor_mask_is_mended_and_a_good_one_left():
    truth = (make_target()[0, 0] == 2).numpy()
    truth[0, 13, 11] = True  # a single voxel too
    poor, good = torch.full(SHAPE, -8.0), torch.where(torch.from_numpy(truth), 3.0, -8.0)
    large = torch.full(SHAPE, 8.0)  # a flood is poor too
    assert [is_poor(mask, truth) for mask in (good, poor, large)] == [False, True, True]
    Mending(5.0, -2.0).apply(poor, truth)
    assert torch.equal(poor > 0, torch.from_numpy(truth))
    assert (poor.min(), poor[5, 0, 0]) == (-2, -2)
    assert 0 < poor[2, 5, 3] < poor[3, 6, 4] <= 5
    Mending(5.0, -2.0).apply(large, truth)
    assert torch.equal(large, poor)
    one_slice = torch.full(SHAPE, -8.0)[3:4]
    Mending(5.0, -2.0).apply(one_slice, truth[3:4])
    assert torch.equal(one_slice > 0, torch.from_numpy(truth[3:4]))


def test_masks_are_mended_until_half_of_those_that_are_clicked_are_good():
    seen = SeenMasks()
    assert seen.share_to_mend(1) == 1  # half of the questions are spoiled, and all of their masks mended
    for _ in range(400):
        seen.note(1, True)
        seen.note(2, False)
    assert (seen.share_to_mend(1), seen.share_to_mend(2), seen.share_to_mend(3)) == (0, 1, 1)
    seen = SeenMasks({1: 0.25})  # of the other three quarters half are spoiled: a third of all has to be mended
    assert 0.25 + 0.75 * 0.5 * seen.share_to_mend(1) == pytest.approx(0.5)


@pytest.mark.parametrize(("share", "mended"), [(0.0, True), (0.9, False)])
def test_what_was_seen_decides_whether_a_poor_mask_is_mended(share, mended):
    target = make_target(1)
    features = make_features(target)
    features.logits[0][:] = 0  # nothing is found
    network = Answering(lambda batch, margin: torch.zeros_like(margin))
    part = SpoiltPart((1, 2, 1), np.ones((2, 2, 2), np.float32), 3.0, "missed", Point((1, 2, 1)))
    question = Question(Query(0, 1, ClassPrompts((part.click,))), part, Mending(5.0, -2.0, 0.5))
    seen = SeenMasks({1: share})
    answer = TrainingPrompter([question], target, LABELS, 0, np.random.default_rng(0), seen)(network, features)
    assert bool((answer.margin_Qzyx > 0).any()) == mended
    assert seen.good_shares[1] == pytest.approx(share * 0.98)  # a poor one more was seen


def test_masks_are_mended_before_they_are_spoiled(monkeypatch):
    drawn = [draw_mending(np.random.default_rng(seed)) for seed in range(40)]
    assert all(mending.inside > 0 > mending.outside for mending in drawn)
    monkeypatch.setattr(drawing, "draw_mending", lambda rng: Mending(5.0, -2.0))
    for spoiled, found in ((1.0, {True}), (0.0, {False})):
        monkeypatch.setattr(drawing, "SPOILED_MARGIN", spoiled)
        questions = [draw_questions(make_target(), LABELS, np.random.default_rng(seed))[0] for seed in range(20)]
        assert {question.mending is not None for question in questions if question.spoiling or not spoiled} == found

    target = make_target(1)
    features = make_features(target)
    features.logits[0][:] = 0  # nothing is found
    network = Answering(lambda batch, margin: torch.zeros_like(margin))
    part = SpoiltPart((1, 2, 1), np.ones((2, 2, 2), np.float32), 3.0, "missed", Point((1, 2, 1)))
    question = Question(Query(0, 1, ClassPrompts((part.click,))), part, Mending(5.0, -2.0))
    answer = TrainingPrompter([question], target, LABELS, 0, np.random.default_rng(0))(network, features)
    wrong = (answer.margin_Qzyx > 0) ^ answer.truth_Qzyx
    assert wrong.sum() == wrong[0, 1:3, 2:4, 1:3].sum() == 8


def test_a_query_whose_clicks_all_agree_gets_one_click_that_does_not(monkeypatch):
    monkeypatch.setattr(prompting, "ANYWHERE", 0.0)
    monkeypatch.setattr(prompting, "SHARE_OF_CLICKS", {1: 1.0})
    target = make_target(1)
    truth = target[0, 0] == 1
    features = make_features(target)
    features.logits[0][0, 1, 2, 9:12, 1:4] = -10  # a missed part
    agreeing = (Point((2, 3, 2)), Point((5, 13, 11), positive=False))
    box = ClassPrompts(boxes=(Box((1, 2, 1), (4, 11, 8)),))
    for prompts, clicks in ((ClassPrompts(agreeing), 3), (ClassPrompts(), 1), (box, 0)):
        network = Answering(lambda batch, margin: torch.zeros_like(margin))
        questions = [Question(Query(0, 1, prompts))]
        TrainingPrompter(questions, target, LABELS, 0, np.random.default_rng(0))(network, features)
        (batch,) = network.asked
        assert (batch.polarity_QP >= 0).sum() == clicks
        if clicks:
            z, y, x = batch.points_QP3[0, clicks - 1].int().tolist()
            assert truth[z, y, x] and (z, batch.polarity_QP[0, clicks - 1]) == (2, 1)


def test_some_corrections_are_clicks_anywhere_in_what_is_wrong(monkeypatch):
    monkeypatch.setattr(prompting, "ANYWHERE", 0.4)
    target = make_target(1)
    features = make_features(target)
    features.logits[0][:, 1] = -10
    places = set()
    for seed in range(30):
        network = Answering(lambda batch, margin: torch.zeros_like(margin))
        question = Question(Query(0, 1))
        TrainingPrompter([question], target, LABELS, 0, np.random.default_rng(seed))(network, features)
        places.add(tuple(network.asked[0].points_QP3[0, 0].tolist()))
        z, y, x = network.asked[0].points_QP3[0, 0].int().tolist()
        assert target[0, 0, z, y, x] == 1 and network.asked[0].polarity_QP[0, 0] == 1
    assert 6 < len(places) < 25


def test_a_correction_is_one_click_or_several_that_lie_apart_each_in_what_is_wrong():
    target = make_target(1)
    truth = target[0, 0] == 1
    features = make_features(target)
    features.logits[0][:, 1] = -10  # all is missed
    features.logits[0][:, 1, :, 13:] = 10  # and this is false
    counts = []
    for seed in range(200):
        network = Answering(lambda batch, margin: torch.zeros_like(margin))
        TrainingPrompter([Question(Query(0, 1))], target, LABELS, 0, np.random.default_rng(seed))(network, features)
        voxels = network.asked[0].points_QP3[0].int()
        for (z, y, x), polarity in zip(voxels.tolist(), network.asked[0].polarity_QP[0].tolist(), strict=True):
            assert polarity == int(truth[z, y, x]) and (polarity == 1 or y >= 13)
        apart = (voxels[:, None] - voxels[None]).abs().amax(-1) + 99 * torch.eye(len(voxels), dtype=torch.int)
        assert apart.min() > prompting.APART
        counts.append(len(voxels))
    shares = np.bincount(counts, minlength=9) / len(counts)
    np.testing.assert_allclose(shares[[1, 2, 4]], [0.6, 0.2, 0.12], atol=0.08)
    assert set(counts) > {1, 2, 4} and max(counts) <= 8


class Loader:
    """Stands for nnU-Net's loader."""

    def __next__(self):
        target = [make_target(), make_target()[..., ::2]]
        return {"data": torch.zeros(2, 1, *SHAPE), "target": target, "keys": ["a", "b"]}

    def set_thread_id(self, number):
        pass


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # batchgenerators, when it ends
@pytest.mark.parametrize("workers", [0, 1])
def test_a_loader_draws_questions_in_its_workers(workers):
    loader = transforming_loader(
        SingleThreadedAugmenter(Loader(), None), QuestionDrawer(LABELS, share=0.5), workers, 2, pin_memory=False
    )
    batches = [next(loader) for _ in range(12)]
    assert all(set(batch) == {"data", "target", "keys", "questions"} for batch in batches)
    assert all(len(batch["questions"]) == 1 for batch in batches)
    assert {batch["questions"][0].query.sample for batch in batches} == {0, 1}
    assert isinstance(loader, NonDetMultiThreadedAugmenter) == bool(workers)
    if workers:
        loader._finish()


@pytest.mark.parametrize("before", [None, "1"])
def test_nnunet_makes_loaders_without_workers_and_its_setting_stays(monkeypatch, before):
    monkeypatch.delenv(WORKERS, raising=False)
    if before:
        monkeypatch.setenv(WORKERS, before)
    allowed = get_allowed_n_proc_DA()
    with pytest.raises(ZeroDivisionError, match="division"), without_workers() as workers:
        assert workers == allowed > 0 == get_allowed_n_proc_DA()
        _ = 1 / 0
    assert os.environ.get(WORKERS) == before


def test_a_loader_in_this_process_draws_from_numpy_s_generator():
    drawn = []
    for seed in (3, 3, 4):
        np.random.seed(seed)
        batches = [QuestionDrawer(LABELS)(target=make_target()) for _ in range(3)]
        drawn.append([q.query.prompts.points for batch in batches for q in batch["questions"]])
    assert drawn[0] == drawn[1] != drawn[2]
