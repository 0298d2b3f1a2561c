"""Which divisions a model and its batches allow."""

import pytest

from puna.errors import ConfigError
from puna.train import mesh as meshes
from puna.train.recipe import BatchRecipe, ParallelRecipe
from tests.reference.tiny import tiny_config


@pytest.mark.parametrize(
    ("parallel", "message"),
    [
        ({"tensor": 3}, "parallel.tensor: 3 does not divide n_heads, 4; use one of 1, 2, 4"),
        ({"shard": 3, "expert": 3}, "parallel.expert: 3 does not divide n_experts, 4"),
        ({"shard": 3, "expert": 2}, "parallel.expert: 2 does not divide shard x context x tensor, 3"),
        ({"context": 7}, "parallel.context: 7 does not divide batch.row_len, 120"),
        ({"pipeline": 5}, "parallel.pipeline: 5 exceeds the 4 layers"),
        ({"pipeline": 4, "shard": 2}, "batch.accumulate: 4 batches a step.*multiple of 2 from 8 on"),
    ],
    ids=str,
)
def test_what_cannot_be_divided_is_refused_with_the_reason(parallel: dict[str, int], message: str) -> None:
    batch = BatchRecipe(rows=1, row_len=120, tiles=0, window=8, accumulate=4)
    with pytest.raises(ConfigError, match=message):
        meshes.check(ParallelRecipe(**parallel), tiny_config(), batch)
