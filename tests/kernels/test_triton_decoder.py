"""The fused operations between matrix products equal the lines of the model that they replace."""

import pytest
import torch

pytest.importorskip("triton", reason="triton is not installed: pip install 'puna[gpu]'")

from puna.kernels.attention import Stored, write_paged
from puna.kernels.triton_decoder import Turn, add_norm, route, to_heads
from puna.model.layers import rms_norm
from puna.model.rope import Rotation, rotate


def near(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("D", [20, 128])
def test_sum_and_norm_equal_those_of_the_model(D: int, device: torch.device) -> None:
    x, delta, gain = torch.randn(3, D, device=device), torch.randn(3, D, device=device), torch.randn(D, device=device)
    total, normed = add_norm(x, delta, gain, 1e-5)
    assert torch.equal(total, x + delta)
    near(normed, rms_norm(x + delta, 1e-5) * gain)
    same, normed = add_norm(x, None, gain, 1e-5)
    assert same is x
    near(normed, rms_norm(x, 1e-5) * gain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.int8, torch.float8_e4m3fn])
@pytest.mark.parametrize(("rotates", "norm_eps"), [(True, 1e-5), (True, None), (False, None)])
def test_heads_equal_those_of_the_model_and_keys_reach_their_blocks(
    rotates: bool, norm_eps: float | None, dtype: torch.dtype, device: torch.device
) -> None:
    torch.manual_seed(0)
    T, N, K, H, block_len = 4, 3, 2, 12, 4
    joined = torch.randn(T, (N + 2 * K) * H, device=device)  # parts of one product: rows lie apart
    q, k, v = joined.split([N * H, K * H, K * H], dim=1)
    angles = torch.randn(T, H // 2, device=device)
    turn = Turn(angles.cos(), angles.sin(), torch.rand(T, device=device) + 0.5)
    own = torch.tensor([5, -1, 0, 11], dtype=torch.int32, device=device)

    def empty() -> Stored:
        codes = [torch.zeros(3, K, block_len, H, device=device).to(dtype) for _ in range(2)]
        scales = [torch.zeros(3, K, block_len, device=device) if dtype != torch.float32 else None for _ in range(2)]
        return Stored(codes[0], codes[1], scales[0], scales[1])

    mine, twin = empty(), empty()
    result = to_heads(q, k, v, turn, mine, own, rotates=rotates, norm_eps=norm_eps)

    heads_q, heads_k, heads_v = (x.unflatten(-1, (-1, H)) for x in (q, k, v))
    if rotates:
        rotation = Rotation(turn.cos[:, None], turn.sin[:, None])
        heads_q, heads_k = rotate(heads_q, rotation), rotate(heads_k, rotation)
        if norm_eps is not None:
            heads_q, heads_k = rms_norm(heads_q, norm_eps), rms_norm(heads_k, norm_eps)
    else:
        heads_q = heads_q * turn.temperature[:, None, None]
    near(result, heads_q)
    kept = own >= 0
    write_paged(twin, own[kept].long() // block_len, own[kept].long() % block_len, heads_k[kept], heads_v[kept])
    for a, b in zip(mine, twin, strict=True):
        if a is not None and b is not None:
            # A number on the border of two codes may fall to either side; e4m3's are up to 1/8 apart.
            torch.testing.assert_close(a.float(), b.float(), atol=1.0 if dtype == torch.int8 else 1e-5, rtol=1 / 8)


@pytest.mark.parametrize(("E", "k"), [(16, 1), (5, 3)])
def test_the_router_chooses_the_best_experts_in_order(E: int, k: int, device: torch.device) -> None:
    logits = torch.randn(6, E, device=device)
    scores, experts = route(logits, k)
    best, expected = logits.topk(k, dim=-1)
    assert torch.equal(experts, expected)
    near(scores, best.sigmoid())
    _, tied = route(torch.zeros(1, E, device=device), k)
    assert tied.tolist() == [list(range(k))]
