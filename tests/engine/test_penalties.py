import random

import pytest
import torch

from puna.engine.penalties import Penalties, Seen
from puna.engine.request import Sampling


def test_repetition_penalty_equals_that_of_transformers() -> None:
    process = pytest.importorskip("transformers.generation.logits_process")
    logits, ids = torch.randn(30, generator=torch.Generator().manual_seed(5)), [3, 9, 9, 20]
    expected = process.RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([ids]), logits[None].clone())[0]
    Seen(Sampling(repetition_penalty=1.3), ids).penalise(logits)
    torch.testing.assert_close(logits, expected)


def accounts() -> list[Seen]:
    kinds = [
        {"repetition_penalty": 1.3},
        {"frequency_penalty": 0.4},
        {"presence_penalty": -1.0, "repetition_penalty": 0.7},
        {"repetition_penalty": 1.1, "frequency_penalty": 1.0, "presence_penalty": 0.5},
    ]
    return [Seen(Sampling(**kind), range(3 * i)) for i, kind in enumerate(kinds)]  # type: ignore[arg-type]


def test_a_table_follows_its_accounts_token_by_token() -> None:
    dice, seen = random.Random(2), accounts()
    table = Penalties(seen, torch.device("cpu"))
    for step in range(60):
        logits = torch.randn(6, 90, generator=torch.Generator().manual_seed(step))
        expected, got = logits.clone(), logits.clone()
        for row, account in zip((0, 2, 3, 5), seen, strict=True):
            account.penalise(expected[row])
        if not table.serves(seen, logits.device):
            table = Penalties(seen, logits.device)
        table.apply(got, torch.tensor([0, 2, 3, 5]), [()] * 4)
        assert torch.equal(got, expected)
        for account in seen:
            for _ in range(dice.randrange(3)):
                account.record(dice.randrange(90))


@pytest.mark.parametrize("n_known", [0, 50])
def test_rows_behind_drafts_count_them_as_written(n_known: int) -> None:
    dice, seen = random.Random(3), accounts()
    for account in seen:
        for _ in range(n_known):
            account.record(dice.randrange(90))
    drafts = [[7, 7, 80], [], [dice.randrange(90) for _ in range(40)], [1]]
    logits = torch.randn(48, 90, generator=torch.Generator().manual_seed(1))
    got = logits.clone()
    Penalties(seen, logits.device).apply(got, torch.arange(48), drafts)
    row = 0
    for account, draft in zip(seen, drafts, strict=True):
        for token in [*draft, 0]:
            expected = logits[row].clone()
            account.penalise(expected)
            assert torch.equal(got[row], expected)
            account.record(token)
            row += 1


def test_a_table_does_not_serve_other_accounts() -> None:
    seen = accounts()
    table = Penalties(seen, torch.device("cpu"))
    assert table.serves(seen, torch.device("cpu"))
    assert not table.serves(seen[:3], torch.device("cpu"))
    assert not table.serves(accounts(), torch.device("cpu"))
