"""A model of this process: log-likelihoods against one plain reading, answers whatever the batch, refusals."""

from collections.abc import Sequence

import pytest
import torch

from puna.chat import Assistant
from puna.errors import ConfigError
from puna.eval import local
from puna.eval.ask import Question, Reply
from puna.eval.local import LocalModel, rolling_windows
from puna.eval.task import Choice, Compare, Completion, Divergence, Likelihood, Passage, Prompt, user
from puna.prompt.render import Prompt as Ids


def question(prompt: Prompt, key: str = "q", *, n: int = 1, tokens: int = 8, temperature: float = 0.0) -> Question:
    return Question(key=key, prompt=prompt, n=n, max_new_tokens=tokens, temperature=temperature, seed=len(key))


def replies(model: LocalModel, questions: Sequence[Question]) -> dict[str, tuple[Reply, ...]]:
    return {question.key: found for question, found in model.answers(questions)}


def plain_logprob(assistant: Assistant, text: str, continuation: str) -> float:
    """One reading of the whole text, without engine; the tiny vocabulary has a token for each byte."""
    ids = [assistant.tokenizer.bos_id, *assistant.tokenizer.encode(text + continuation)]
    n = len(continuation.encode())
    return sum(each.chosen for each in assistant.prompt_logprobs(Ids(ids, None))[-n:])


@pytest.mark.parametrize("looked_at", [4096, 1])
@pytest.mark.parametrize("continuations", [("A", "B", "C"), (" Lima", " La Paz", " Quito, or so"), ("x", "yz")])
def test_continuations_are_as_likely_as_in_one_reading(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch, continuations: tuple[str, ...], looked_at: int
) -> None:
    monkeypatch.setattr(local, "LOOKED_AT", looked_at)
    choice = Choice(text="The capital is", continuations=continuations, labels=continuations)
    ((reply,),) = replies(LocalModel(assistant), [question(choice)]).values()
    wanted = [plain_logprob(assistant, choice.text, each) for each in continuations]
    assert reply.details["logprobs"] == pytest.approx(wanted, abs=1e-4)
    assert reply.text == continuations[wanted.index(max(wanted))]


def test_space_at_the_end_of_the_text_belongs_to_the_continuation(assistant: Assistant) -> None:
    choice = Choice(text="Answer: ", continuations=("A", "B"), labels=("A", "B"))
    ((reply,),) = replies(LocalModel(assistant), [question(choice)]).values()
    wanted = [plain_logprob(assistant, "Answer:", " A"), plain_logprob(assistant, "Answer:", " B")]
    assert reply.details["logprobs"] == pytest.approx(wanted, abs=1e-4)


def test_answers_do_not_depend_on_the_batch(assistant: Assistant) -> None:
    questions = [
        *(question(Completion(text="Once " * i, stops=("\n",)), f"c{i}") for i in range(1, 5)),
        *(question(user(f"What is {i}?"), f"m{i}", n=3, temperature=1.0) for i in range(4)),
        *(
            question(Choice(text=f"{i} is", continuations=(" even", " odd"), labels=("0", "1")), f"o{i}")
            for i in range(4)
        ),
    ]
    alone, together = (replies(LocalModel(assistant, batch=batch), questions) for batch in (1, 12))
    assert alone == together
    samples = [reply.text for reply in alone["m0"]]
    assert len(samples) == 3 and len(set(samples)) > 1, "samples of one question differ"


def test_prompt_beyond_the_context_is_refused_and_the_others_are_answered(assistant: Assistant) -> None:
    long = Completion(text="x" * 600, stops=())
    found = replies(LocalModel(assistant), [question(long, "long"), question(user("Hi"), "short")])
    assert "context of 512" in found["long"][0].refusal and found["long"][0].text == ""
    assert not found["short"][0].refusal


def test_missing_picture_is_a_refusal(assistant: Assistant) -> None:
    ((reply,),) = replies(
        LocalModel(assistant), [question(Completion(text="x", stops=(), images=("no.png",)))]
    ).values()
    assert "no.png" in reply.refusal


def test_answer_that_the_context_cuts_says_so(assistant: Assistant) -> None:
    cut = Completion(text="x" * 500, stops=())
    ((reply,),) = replies(LocalModel(assistant), [question(cut, tokens=100)]).values()
    assert reply.details["cut_at"] == 11 or reply.details["finish"] == "stop"


@pytest.mark.parametrize("window", [3, 4, 7, 100])
def test_windows_predict_every_id_once_and_reach_back_at_the_end(window: int) -> None:
    ids = list(range(10))
    pieces = list(rolling_windows(ids, -1, window))
    assert [id_ for piece, n in pieces for id_ in piece[-n:]] == ids
    assert all(len(piece) <= window + 1 for piece, _ in pieces)
    assert pieces[0][0][0] == -1
    assert all(len(piece) == window + 1 for piece, _ in pieces[1:]), "later windows are full"


def test_passage_in_windows_sums_plain_log_probabilities(assistant: Assistant) -> None:
    text = "Llamas graze on the puna, four thousand metres high."
    model, n = LocalModel(assistant), len(text.encode())
    ((whole,),) = replies(model, [question(Passage(text=text))]).values()
    found = Likelihood.read(whole.text)
    assert found and found.n_tokens == n
    assert found.logprob == pytest.approx(plain_logprob(assistant, "", text), abs=1e-3)
    ((parts,),) = replies(model, [question(Passage(text=text, window=20))]).values()
    ids = assistant.tokenizer.encode(text)
    wanted = 0.0
    for piece, n_new in rolling_windows(ids, assistant.tokenizer.bos_id, 20):
        wanted += sum(each.chosen for each in assistant.prompt_logprobs(Ids(piece, None))[-n_new:])
    assert parts.details["window"] == 20
    assert Likelihood.read(parts.text).logprob == pytest.approx(wanted, abs=1e-3)  # type: ignore[union-attr]
    ((empty,),) = replies(model, [question(Passage(text=""))]).values()
    assert Likelihood.read(empty.text) == (0.0, 0)


def test_model_does_not_differ_from_itself_and_from_another_it_does(assistant: Assistant) -> None:
    text = Compare(text="Llamas graze on the puna.", window=8)
    ((same,),) = replies(LocalModel(assistant, reference=assistant), [question(text)]).values()
    assert Divergence.read(same.text) == (0.0, 1.0, 0.0, 25)
    weight = assistant.model.embedding.weight
    with torch.no_grad():
        kept = weight.clone()
        known = [assistant.logits(piece[:-1])[-n:] for piece, n in rolling_windows(*_ids(assistant, text.text), 8)]
        weight += 0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
        moved = [assistant.logits(piece[:-1])[-n:] for piece, n in rolling_windows(*_ids(assistant, text.text), 8)]
        weight.copy_(kept)
    parts = [torch.tensor(piece[-n:]) for piece, n in rolling_windows(*_ids(assistant, text.text), 8)]
    sums = sum(local._divergence(a, b, ids) for a, b, ids in zip(known, moved, parts, strict=True))
    p, q = torch.cat(known).double().softmax(-1), torch.cat(moved).double().softmax(-1)
    assert float(sums[0]) == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-6) and float(sums[0]) > 0  # type: ignore[index]
    chosen = torch.cat(parts)[:, None]
    assert float(sums[2]) == pytest.approx(float((p / q).gather(1, chosen).log().sum()), rel=1e-6)  # type: ignore[index]


def _ids(assistant: Assistant, text: str) -> tuple[list[int], int]:
    return assistant.tokenizer.encode(text), assistant.tokenizer.bos_id


def test_comparison_without_a_reference_is_refused(assistant: Assistant) -> None:
    with pytest.raises(ConfigError, match="--reference MODEL"):
        replies(LocalModel(assistant), [question(Compare(text="x"))])
