"""Features land on patch tokens in order, and nowhere else."""

import torch

from puna.model.fusion import fuse


def test_features_replace_patch_tokens_in_order() -> None:
    embeddings, features = torch.zeros(6, 2), torch.arange(1.0, 7.0).view(3, 2)
    is_patch = torch.tensor([False, True, True, False, True, False])
    fused = fuse(embeddings, is_patch, features)
    assert torch.equal(fused[is_patch], features) and torch.equal(fused[~is_patch], embeddings[~is_patch])


def test_surplus_features_are_ignored() -> None:
    fused = fuse(torch.zeros(3, 1), torch.tensor([False, True, False]), torch.tensor([[5.0], [9.0]]))
    assert fused.flatten().tolist() == [0.0, 5.0, 0.0]


def test_gradients_flow_into_features_and_embeddings() -> None:
    embeddings, features = torch.zeros(3, 1, requires_grad=True), torch.ones(1, 1, requires_grad=True)
    fuse(embeddings, torch.tensor([False, True, False]), features).sum().backward()
    assert embeddings.grad is not None and embeddings.grad.flatten().tolist() == [1.0, 0.0, 1.0]
    assert features.grad is not None and features.grad.item() == 1.0
