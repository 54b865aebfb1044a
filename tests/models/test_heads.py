"""Embedding heads."""

from __future__ import annotations

import torch

from hydistill_edge.models.heads import EmbeddingHead


def test_embedding_is_the_linear_layers_answer_over_its_norm() -> None:
    head = EmbeddingHead(2, embedding=2)
    with torch.no_grad():
        head.linear.weight.copy_(torch.eye(2))
        head.linear.bias.copy_(torch.tensor([1.0, 0.0]))
    embedded = head(torch.tensor([[2.0, 4.0], [-1.0, -7.0]]))
    torch.testing.assert_close(embedded, torch.tensor([[0.6, 0.8], [0.0, -1.0]]))


def test_embedding_has_128_values_of_norm_one_by_default() -> None:
    embedded = EmbeddingHead(5)(torch.randn(3, 5, generator=torch.Generator().manual_seed(0)))
    assert embedded.shape == (3, 128)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3))


def test_gradient_reaches_head_and_vector() -> None:
    head = EmbeddingHead(5, embedding=4)
    vector = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).requires_grad_()
    torch.autograd.backward(head(vector)[:, 0].sum())
    assert vector.grad is not None
    assert vector.grad.abs().sum() > 0
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in head.parameters())


def test_same_seed_gives_the_same_head_and_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(4)
    wanted = torch.rand(1)
    torch.manual_seed(4)
    first, second = EmbeddingHead(3, seed=1), EmbeddingHead(3, seed=1)
    assert torch.equal(first.linear.weight, second.linear.weight)
    assert torch.equal(torch.rand(1), wanted)
