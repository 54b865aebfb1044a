from __future__ import annotations

from torch import nn

from hydistill_edge.models.counting import Size, count


def test_count_equals_the_hand_computed_numbers() -> None:
    network = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.Flatten(), nn.Linear(4 * 5 * 6, 7))
    params = (4 * 2 * 9 + 4) + (120 * 7 + 7)
    assert count(network, channels=2, size=(5, 6)) == Size(params, macs=30 * 4 * 2 * 9 + 120 * 7)


def test_count_knows_that_depthwise_convolutions_are_cheap() -> None:
    network = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
    assert count(network, channels=8, size=(4, 4)) == Size(params=72, macs=16 * 72)


def test_count_leaves_mode_and_statistics_as_they_were() -> None:
    network = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 1, 1)).train()
    count(network, channels=1, size=(2, 2))
    assert network.training
    assert int(network[0].num_batches_tracked) == 0
