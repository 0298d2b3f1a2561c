from dataclasses import replace

import pytest
import torch

from puna.engine.request import Request, Sampling, check
from puna.errors import PromptError
from puna.presets import GUARD4
from tests.reference.tiny import PATCH_ID, tiny_config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -1),
        ("top_k", 1.5),
        ("min_p", 2.0),
        ("repetition_penalty", 0.0),
        ("presence_penalty", 3.0),
        ("frequency_penalty", -2.5),
        ("seed", -1),
        ("max_new_tokens", 0),
        ("n_logprobs", True),
    ],
)
def test_a_setting_out_of_range_is_named_with_its_value(field: str, value: float) -> None:
    with pytest.raises(PromptError, match=f"{field} is {value!r}"):
        Sampling(**{field: value})


def test_a_request_gets_its_own_limit_or_the_rest_of_the_context() -> None:
    config = tiny_config()
    assert check(Request(ids=[1] * 12), config) == 500
    assert check(Request(ids=[1] * 12, sampling=Sampling(max_new_tokens=7)), config) == 7


def test_a_request_that_leaves_the_context_is_refused_with_both_lengths() -> None:
    with pytest.raises(PromptError, match=r"prompt of 512 tokens and max_new_tokens 1 exceed the context of 512"):
        check(Request(ids=[1] * 512), tiny_config())
    with pytest.raises(PromptError, match="prompt of 500 tokens and max_new_tokens 13 "):
        check(Request(ids=[1] * 500, sampling=Sampling(max_new_tokens=13)), tiny_config())


def test_ids_outside_the_vocabulary_and_empty_prompts_are_refused() -> None:
    with pytest.raises(PromptError, match="ids holds 64"):
        check(Request(ids=[1, 64]), tiny_config())
    with pytest.raises(PromptError, match="ids is empty"):
        check(Request(ids=[]), tiny_config())


def test_patch_tokens_and_tiles_must_agree() -> None:
    tiles = torch.zeros(2, 3, 16, 16)
    assert check(Request(ids=[PATCH_ID] * 8, tiles=tiles), tiny_config())
    for ids, given in (([PATCH_ID] * 7, tiles), ([1], tiles), ([PATCH_ID], None)):
        with pytest.raises(PromptError, match="patch tokens"):
            check(Request(ids=ids, tiles=given), tiny_config())
    with pytest.raises(PromptError, match=r"reads \[I, 3, 16, 16\]"):
        check(Request(ids=[PATCH_ID] * 4, tiles=torch.zeros(1, 3, 8, 8)), tiny_config())


def test_a_text_model_refuses_tiles() -> None:
    with pytest.raises(PromptError, match="reads text only"):
        check(Request(ids=[1], tiles=torch.zeros(1, 3, 336, 336)), replace(GUARD4, vision=None, patch_id=None))


def test_n_must_be_positive() -> None:
    with pytest.raises(PromptError, match="n is 0"):
        Request(ids=[1], n=0)


@pytest.mark.parametrize(
    ("field", "value"), [("priority", 101), ("priority", -101), ("deadline_seconds", float("nan"))]
)
def test_settings_of_a_request_out_of_their_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(PromptError, match=f"{field} is {value}"):
        Request(ids=[1], **{field: value})  # type: ignore[arg-type]
