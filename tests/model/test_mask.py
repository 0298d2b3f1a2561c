"""The one definition of the mask, case by case."""

import torch

from puna.model.mask import Packed, visible
from puna.presets import CRIA


def seen(length: int, chunk_len: int | None, documents: list[int] | None = None) -> torch.Tensor:
    positions, docs = torch.arange(length), torch.tensor(documents or [0] * length)
    return visible(positions, docs, positions, docs, chunk_len)


def test_without_chunks_a_token_sees_everything_up_to_itself() -> None:
    assert torch.equal(seen(5, None), torch.ones(5, 5, dtype=torch.bool).tril())


def test_chunked_mask_hides_previous_chunk() -> None:
    mask = seen(9, 4)
    assert mask[3].tolist() == [True] * 4 + [False] * 5
    assert (
        mask[4].tolist() == [False] * 4 + [True] + [False] * 4
    )  # right behind a border only itself: no sliding window
    assert mask[7].tolist() == [False] * 4 + [True] * 4 + [False]


def test_documents_do_not_see_each_other_and_count_chunks_from_their_own_start() -> None:
    positions, documents = torch.tensor([0, 1, 2, 0, 1, 2, 3]), torch.tensor([0, 0, 0, 1, 1, 1, 1])
    mask = visible(positions, documents, positions, documents, 3)
    assert mask[5].tolist() == [False] * 3 + [True] * 3 + [False]
    assert mask[6].tolist() == [False] * 6 + [True]


def test_a_decode_query_sees_the_same_keys_as_its_row_of_the_whole_mask() -> None:
    keys, documents = torch.arange(11), torch.zeros(11, dtype=torch.int64)
    for position in range(11):
        query = torch.tensor([position])
        alone = visible(query, documents[:1], keys, documents, 4)
        assert torch.equal(alone[0], seen(11, 4)[position])


def test_packed_rows_give_each_document_what_it_gets_alone() -> None:
    torch.manual_seed(0)
    text, lengths = CRIA.text, (130, 3, 127)
    total = sum(lengths)
    positions = torch.cat([torch.arange(n) for n in lengths])[None]
    documents = torch.cat([torch.full((n,), i) for i, n in enumerate(lengths)])[None]
    q, k, v = torch.randn(total, 6, 32), torch.randn(total, 2, 32), torch.randn(total, 2, 32)
    for layer in (0, 3):
        whole = Packed(text, positions, documents).attend(layer, q, k, v)
        start = 0
        for n in lengths:
            part = slice(start, start + n)
            alone = Packed.single(text, n).attend(layer, q[part], k[part], v[part])
            torch.testing.assert_close(whole[part], alone, atol=1e-6, rtol=1e-5)
            start += n
