"""When teacher keys are chosen, and what is kept."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from hydistill_edge.errors import UsageError
from hydistill_edge.methods.key_choice import KeyChoice

NAMES = ("a", "b", "c", "d")
LOW, HIGH = torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([0.1, 0.2, 0.3, 0.4])


def made(**changes: Any) -> KeyChoice:
    """Ten steps in five epochs: warm-up of two epochs, frozen from step 8 on."""
    defaults = {"factor": 1.0, "channel_share": 1.0, "momentum": 0.0, "fixed": ()}
    defaults |= {"shuffled_by": None, "first_step": 4, "frozen_step": 8, "steps": 10, "epochs": 5}
    return KeyChoice(NAMES, **{**defaults, **changes})


def follow(choice: KeyChoice, scores: list[torch.Tensor]) -> list[tuple[int, ...]]:
    kept = []
    for step, score in enumerate(scores):
        choice.turn(step)
        kept.append(choice.kept)
        choice.note(score, torch.ones(1, 2, 4) / 4, [torch.ones(1, 2, 3, 3)] * 4)
    return kept


def test_choice_follows_epochs_after_the_warmup_until_it_is_frozen() -> None:
    scores = [LOW] * 5 + [HIGH] * 2 + [LOW] * 3  # chosen at 4 and 6; the end of 8 is too late
    kept = follow(made(), scores)
    everything = (0, 1, 2, 3)
    assert kept == [everything] * 4 + [(0, 1)] * 2 + [(2, 3)] * 4


def test_history_has_one_entry_per_epoch() -> None:
    choice = made()
    follow(choice, [LOW] * 10)
    assert [(entry["epoch"], entry["step"]) for entry in choice.history] == [
        (1, 2),
        (2, 4),
        (3, 6),
        (4, 8),
    ]
    assert choice.history[-1]["chosen"] == [0, 1]
    assert choice.history[-1]["threshold"] == pytest.approx(0.25)


def test_running_mean_forgets_slowly() -> None:
    choice = made(momentum=0.9)
    follow(choice, [LOW, HIGH])
    assert choice.scores is not None
    torch.testing.assert_close(choice.scores, 0.9 * LOW + 0.1 * HIGH)


def test_random_keys_are_as_many_and_the_same_all_along() -> None:
    kept = [follow(made(shuffled_by=seed), [LOW] * 10)[4:] for seed in range(8)]
    assert all(len(set(places)) == 1 and len(places[0]) == 2 for places in kept)
    assert len({places[0] for places in kept}) > 1


def test_given_keys_are_kept_from_the_first_step() -> None:
    assert set(follow(made(fixed=("b", "d")), [LOW] * 10)) == {(1, 3)}
    with pytest.raises(UsageError, match='"e" to tap'):
        made(fixed=("e",))


def test_channels_are_those_of_the_largest_mean_square() -> None:
    choice = made(channel_share=0.5)
    maps = [torch.tensor([1.0, -3.0, 2.0, 0.0]).view(1, 4, 1, 1).expand(2, 4, 2, 2)] * 4
    for step in range(6):
        choice.turn(step)
        choice.note(LOW, torch.ones(1, 2, 4), maps)
    assert choice.channels[0] is not None
    assert choice.channels[0].tolist() == [1, 2]


def test_memory_survives_the_way_through_json() -> None:
    choice, again = made(momentum=0.9, channel_share=0.5), made(momentum=0.9, channel_share=0.5)
    scores = [torch.rand(4, generator=torch.Generator().manual_seed(n)) for n in range(10)]
    follow(choice, scores)
    again.restore(json.loads(json.dumps(choice.to_values())))
    assert again.to_values() == choice.to_values()
    assert (again.kept, again.history) == (choice.kept, choice.history)
