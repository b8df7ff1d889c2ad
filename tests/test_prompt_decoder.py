"""Prompts as tensors, and the network's answer to them."""

import numpy as np
import pytest
import torch

from sam3dnet.errors import PlanError
from sam3dnet.network.prompt_decoder import class_margin, margin_of_class
from sam3dnet.network.prompt_encoder import (
    PromptBatch,
    Query,
    Standing,
    dense_prompts,
    position_features,
    sample_at,
)
from sam3dnet.network.sam3d import SAM3D
from sam3dnet.prompts.types import Box, ClassPrompts, Point

SHAPE = (7, 13, 10)
STRIDE = (2, 4, 4)
DISPUTED_NEAR, DISPUTED_FAR, AGREED, INSIDE, MASK, MARGIN = range(6)


def make_network(prompts=True):
    torch.manual_seed(0)
    return SAM3D(
        1,
        3,
        False,
        encoder="tiny",
        patch_size=(8, 12, 12),
        token_stride=STRIDE,
        strides=[[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        prompts=prompts,
    ).eval()


def click(*at, positive=True):
    return ClassPrompts(points=(Point(at, positive),))


def as_if_trained(network):
    """Let a network answer, which at birth changes nothing."""
    torch.nn.init.normal_(network.prompt_decoder.mask_token[-1].weight)
    return network


def answer(network, features, *queries, margin=-3.0):
    """Ask where the class is nowhere yet."""
    batch = PromptBatch.of(queries, SHAPE)
    return network.prompted(features, batch, torch.full((len(queries), *SHAPE), margin))


@pytest.fixture(scope="module")
def network():
    return as_if_trained(make_network())


@pytest.fixture(scope="module")
def features(network):
    torch.manual_seed(1)
    with torch.no_grad():
        return network.features(torch.randn(2, 1, *SHAPE))


def test_the_margin_is_the_log_odds_of_the_softmax():
    logits = torch.randn(2, 4, 2, 3, 5, dtype=torch.double)
    margin = class_margin(logits, torch.tensor([1, 3]), False)
    probabilities = logits.softmax(1)
    assert torch.allclose(margin.sigmoid()[0], probabilities[0, 1])
    assert torch.allclose(margin.sigmoid()[1], probabilities[1, 3])
    assert torch.equal(class_margin(logits, torch.tensor([1, 3]), True)[1], logits[1, 3])


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("channels", [2, 5])
def test_the_margin_of_one_class_is_that_of_the_batch(channels, regions):
    logits = 5 * torch.randn(2, channels, 2, 3, 5)
    for row, class_index in enumerate((1, channels - 1)):
        expected = class_margin(logits, torch.tensor([1, channels - 1]), regions)[row]
        torch.testing.assert_close(margin_of_class(logits[row], class_index, regions), expected)


def test_adding_to_the_logit_adds_to_the_margin():
    logits, correction = torch.randn(1, 3, 2, 3, 4, dtype=torch.double), torch.randn(1, 2, 3, 4, dtype=torch.double)
    corrected = logits.clone()
    corrected[:, 2] += correction
    two = torch.tensor([2])
    assert torch.allclose(class_margin(corrected, two, False), class_margin(logits, two, False) + correction)


def test_dense_prompts_are_drawn_where_they_were_said():
    mask = np.zeros(SHAPE, bool)
    mask[2, 3:5, 4] = True
    prompts = ClassPrompts(
        (Point((1, 11, 2)), Point((5, 2, 8), positive=False), Point((2, 3, 4))),
        (Box((2, 3, 4), (2, 5, 9)), Box((6, 12, 9), (6, 12, 9))),
        mask,
    )
    disputing = ClassPrompts((Point((5, 2, 8), positive=False), Point((1, 11, 2))))
    batch = PromptBatch.of([Query(0, 1, prompts), Query(0, 2), Query(0, 1, disputing)], SHAPE)
    margin = torch.full((3, *SHAPE), 30.0)
    maps = dense_prompts(batch, Standing.of(batch, margin), margin, STRIDE)
    assert maps.shape == (3, 6, *SHAPE)
    for row, channel, peak, value in (
        (0, DISPUTED_NEAR, (1, 11, 2), 1),  # the mask says otherwise
        (0, DISPUTED_FAR, (1, 11, 2), 1),
        (0, AGREED, (2, 3, 4), 1),
        (0, AGREED, (5, 2, 8), -1),
        (2, DISPUTED_NEAR, (5, 2, 8), -1),
        (2, DISPUTED_FAR, (5, 2, 8), -1),
        (2, AGREED, (1, 11, 2), 1),
    ):
        drawn = value * maps[row, channel]
        assert drawn[peak] == pytest.approx(1, abs=0.02)
        assert np.unravel_index(int(drawn.argmax()), SHAPE) == peak
    assert maps[0, DISPUTED_FAR].sum() > maps[0, DISPUTED_NEAR].sum()
    inside = torch.zeros(SHAPE)
    inside[2, 3:6, 4:10] = 1
    inside[6, 12, 9] = 1
    assert torch.equal(maps[0, INSIDE], inside)
    assert torch.equal(maps[0, MASK], 2 * torch.from_numpy(mask).float() - 1)
    assert (maps[:, MARGIN] == 1).all()
    assert not maps[1, :MARGIN].any()


def test_the_sampler_reads_the_clicked_voxel_at_every_resolution():
    fine = torch.arange(float(np.prod(SHAPE))).view(1, 1, *SHAPE)
    points = torch.tensor([[[0.0, 0.0, 0.0], [6.0, 12.0, 9.0], [3.0, 7.0, 5.0]]])
    read = sample_at(fine, points, SHAPE)[0, :, 0]
    assert torch.allclose(
        read, torch.stack([fine[0, 0, 0, 0, 0], fine[0, 0, 6, 12, 9], fine[0, 0, 3, 7, 5]]), atol=1e-3
    )
    coarse = torch.zeros(1, 2, 4, 4, 3)
    coarse[0, 1, 3, 0, 2] = 5
    assert sample_at(coarse, torch.tensor([[[6.0, 1.0, 9.0]]]), (8, 16, 12))[0, 0, 1] > 2


def test_half_precision_does_not_move_clicks():
    stripes = (torch.arange(121) % 2).bfloat16().view(1, 1, 1, -1, 1).expand(1, 1, 3, -1, 5)
    points = torch.tensor([[[1.0, y, 2.0] for y in range(121)]])
    read = sample_at(stripes, points, stripes.shape[2:])[0, :, 0]
    torch.testing.assert_close(read, stripes[0, 0, 0, :, 0], atol=0.02, rtol=0)


def test_the_gradient_of_what_a_click_reads_lies_as_the_features_do():
    fine = torch.randn(2, 3, 4, 5, 6).contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    sample_at(fine, torch.tensor([[[1.0, 2.5, 3.0]], [[0.0, 0.0, 5.0]]]), (4, 5, 6)).sum().backward()
    assert fine.grad.is_contiguous(memory_format=torch.channels_last_3d)
    assert torch.allclose(fine.grad.sum((1, 2, 3, 4)), torch.tensor([3.0, 3.0]))
    assert torch.allclose(fine.grad[0, :, 1, 2, 3], torch.tensor(0.5))


def test_positions_are_told_apart():
    grid = torch.stack(torch.meshgrid(*(torch.arange(0, 60, 3.0) for _ in range(3)), indexing="ij"), -1).flatten(0, 2)
    codes = position_features(grid, (8, 8, 8))
    assert torch.cdist(codes[::37], codes).sort(1).values[:, 1].min() > 0.05


@pytest.mark.parametrize(
    "other",
    [
        click(3, 4, 6),
        click(3, 4, 5, positive=False),
        ClassPrompts(),
        ClassPrompts(boxes=(Box((3, 4, 5), (3, 4, 5)),)),
        ClassPrompts(mask=np.ones(SHAPE, bool)),
    ],
    ids=["place", "polarity", "nothing", "box", "mask"],
)
def test_what_is_said_changes_the_answer(network, features, other):
    said = answer(network, features, Query(0, 1, click(3, 4, 5)))
    assert said.shape == (1, *SHAPE)
    assert (said - answer(network, features, Query(0, 1, other))).abs().max() > 1e-3


def test_clicks_that_agree_change_nothing(network, features):
    agreeing = ClassPrompts((Point((3, 4, 5), positive=False), Point((6, 0, 9), positive=False)))
    assert not answer(network, features, Query(0, 1, agreeing)).any()
    assert answer(network, features, Query(0, 1, agreeing), margin=3.0).abs().max() > 1e-3
    inside = ClassPrompts(agreeing.points, mask=np.ones(SHAPE, bool))
    assert answer(network, features, Query(0, 1, inside)).abs().max() > 1e-3


def test_what_was_never_trained_changes_nothing(features):
    everything = ClassPrompts((Point((3, 4, 5)),), (Box((0, 1, 2), (3, 4, 5)),), np.ones(SHAPE, bool))
    assert not answer(make_network(), features, Query(0, 1, everything)).any()


def test_clicks_agree_with_the_mask_that_is_there_else_with_the_margin():
    mask = np.zeros(SHAPE, bool)
    mask[3, 4, 5] = True
    clicks = (Point((3.4, 3.5, 5)), Point((3, 4, 6)), Point((3, 4, 5), positive=False))
    batch = PromptBatch.of([Query(0, 1, ClassPrompts(clicks, mask=mask)), Query(0, 1, ClassPrompts(clicks[:2]))], SHAPE)
    margin = torch.full((2, *SHAPE), -4.0)
    margin[:, 3, 4, 6] = 2
    standing = Standing.of(batch, margin)
    assert standing.disputed_QP.tolist() == [[False, True, True], [True, False, False]]
    assert standing.margin_QP[1, :2].tolist() == [-4, 2]


def test_class_and_image_change_the_answer(network, features):
    said = answer(network, features, Query(0, 1, click(3, 4, 5)))
    assert (said - answer(network, features, Query(0, 2, click(3, 4, 5)))).abs().max() > 1e-3
    assert (said - answer(network, features, Query(1, 1, click(3, 4, 5)))).abs().max() > 1e-3


def test_queries_of_a_batch_do_not_see_each_other(network, features):
    many = ClassPrompts((Point((1, 2, 3)), Point((4, 5, 6), False)), (Box((0, 1, 2), (3, 4, 5)),), np.ones(SHAPE, bool))
    queries = [Query(1, 2, click(3, 4, 5)), Query(0, 1, many), Query(1, 1)]
    together = answer(network, features, *queries)
    for row, query in enumerate(queries):
        assert torch.allclose(together[row], answer(network, features, query)[0], atol=1e-5)


def test_prompts_are_answered_from_the_features_alone(network, features, monkeypatch):
    monkeypatch.setattr(network, "features", None)
    monkeypatch.setattr(network, "image_encoder", None)
    answer(network, features, Query(0, 1, click(3, 4, 5)))


def test_without_a_prompt_the_logits_do_not_depend_on_the_prompt_decoder():
    network, image = make_network(), torch.randn(1, 1, *SHAPE)
    plain = make_network(prompts=False)
    left_out = plain.load_state_dict(network.state_dict(), strict=False)
    assert {name.split(".")[0] for name in left_out.unexpected_keys} == {"prompt_decoder", "reaching"}
    assert torch.equal(network(image), plain.eval()(image))


def test_a_network_planned_without_prompts_says_so(features):
    with pytest.raises(PlanError, match="planned without prompts; plan and train again"):
        answer(make_network(prompts=False), features, Query(0, 1))


def test_the_click_decides_which_of_two_equal_objects_is_meant():
    """Two blobs that look the same; the target is the clicked one, so only the click's place can tell."""
    torch.manual_seed(0)
    shape, centres = (8, 12, 24), ((4, 6, 5), (4, 6, 18))
    network = make_network()
    image, blobs = torch.zeros(1, 1, *shape), torch.zeros(2, *shape)
    for blob, (z, y, x) in zip(blobs, centres, strict=True):
        blob[z - 2 : z + 2, y - 3 : y + 3, x - 3 : x + 3] = 1
    image[0, 0] = blobs.sum(0) + 0.1 * torch.randn(shape)
    with torch.no_grad():
        features = network.features(image)
    batch = PromptBatch.of([Query(0, 1, click(*centre)) for centre in centres], shape)
    margin = torch.full((2, *shape), -2.0)
    optimizer = torch.optim.Adam(network.prompt_decoder.parameters(), 5e-3)
    for _ in range(60):
        optimizer.zero_grad()
        corrected = margin + network.prompted(features, batch, margin)
        torch.nn.functional.binary_cross_entropy_with_logits(corrected, blobs).backward()
        optimizer.step()
    with torch.no_grad():
        predicted = margin + network.prompted(features, batch, margin) > 0
    overlap = 2 * (predicted & (blobs > 0)).flatten(1).sum(1)
    assert (overlap / (predicted.flatten(1).sum(1) + blobs.flatten(1).sum(1)) > 0.9).all()
