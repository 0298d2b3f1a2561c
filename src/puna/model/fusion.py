"""Early fusion: image features take the places of the patch tokens, before the first layer."""

from torch import Tensor


def fuse(embeddings: Tensor, is_patch: Tensor, features: Tensor) -> Tensor:
    """Returns the embeddings with the n-th patch token's row replaced by the n-th feature.

    embeddings [T D], is_patch bool [T], features [M D] with at least as many rows as there are patch tokens (a batch of
    fixed shape may carry more). No host round trip: the shapes do not depend on the ids.
    """
    slots = (is_patch.cumsum(0) - 1).clamp(min=0)  # T
    return features.to(embeddings.dtype)[slots].where(is_patch[:, None], embeddings)  # T D
