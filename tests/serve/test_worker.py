import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from puna.chat import Assistant, Options, Piece
from puna.errors import CapacityError, PromptError, WeightsError
from puna.prompt.render import Prompt
from puna.serve.metrics import Metrics
from puna.serve.stepping import ThreadStepper
from puna.serve.worker import Answers, Worker

GREEDY = Options(temperature=0.0, max_new_tokens=6)


@asynccontextmanager
async def working(assistant: Assistant, **settings: Any) -> AsyncIterator[Worker]:
    layers = sorted(assistant.config.text.moe_layers)
    worker = Worker(ThreadStepper(assistant), Metrics("m"), layers=layers, **{"max_open": 100} | settings)
    await worker.start()
    try:
        yield worker
    finally:
        await worker.stop()
        assert not worker.is_alive


async def texts_of(answers: Answers) -> dict[tuple[int, int], str]:
    texts: dict[tuple[int, int], str] = {}
    while not answers.is_over:
        for index, piece in await answers.next():
            texts[index, piece.sample] = texts.get((index, piece.sample), "") + piece.text
    return texts


def greedy(assistant: Assistant, text: str) -> Any:
    return assistant.complete(text, temperature=0.0, max_new_tokens=6)


def test_prompts_answered_together_get_what_they_get_alone(assistant: Assistant) -> None:
    words = ["a", "bc", "def", "ghij"]

    async def ask() -> tuple[dict[tuple[int, int], str], dict[tuple[int, int], str]]:
        prompts = [(assistant.text_prompt(word), GREEDY) for word in words]
        async with working(assistant) as worker, worker.answer(prompts) as one, worker.answer(prompts[::-1]) as other:
            return await texts_of(one), await texts_of(other)

    forwards, backwards = asyncio.run(ask())
    assert forwards == {(i, 0): greedy(assistant, word) for i, word in enumerate(words)}
    assert backwards == {(i, 0): greedy(assistant, word) for i, word in enumerate(words[::-1])}


def test_leaving_frees_the_model_at_the_next_step(assistant: Assistant) -> None:
    async def ask() -> None:
        endless = (assistant.text_prompt("a"), Options(temperature=0.0, max_new_tokens=2000, n=3))
        async with working(assistant) as worker:
            async with worker.answer([endless, endless]) as answers:
                while worker.held.n_running < 6:
                    await answers.next()
            # What is asked after leaving is taken in later, so its answer says that leaving took effect.
            await worker.prompt_logprobs(assistant.text_prompt("a"), 0)
            assert worker.held.n_running == 0
            assert tuple(assistant.engine.load.n_held_blocks) == (0, 0)

    asyncio.run(ask())


def test_one_of_several_samples_can_be_ended_while_the_others_go_on(assistant: Assistant) -> None:
    async def ask() -> tuple[dict[tuple[int, int], str], dict[tuple[int, int], str]]:
        drawn = Options(temperature=2.0, top_p=1.0, seed=1, max_new_tokens=40, n=3, ignore_stop_ids=True)
        prompts = [(assistant.text_prompt("a"), drawn)]
        async with working(assistant) as worker:
            async with worker.answer(prompts) as answers:
                whole = await texts_of(answers)
            async with worker.answer(prompts) as answers:
                await answers.next()
                answers.end(0, 1)
                return whole, await texts_of(answers)

    whole, rest = asyncio.run(ask())
    assert all(whole[key].endswith(rest[key]) and rest[key] for key in ((0, 0), (0, 2)))
    assert len(rest.get((0, 1), "")) < len(whole[0, 1])


def test_a_client_that_leaves_while_it_queues_leaves_nothing_behind(assistant: Assistant) -> None:
    async def ask() -> None:
        endless = (assistant.text_prompt("a"), Options(temperature=0.0, max_new_tokens=2000))

        async def wait_for_it(worker: Worker) -> None:
            async with worker.answer([endless]):
                await asyncio.sleep(60)

        async with working(assistant) as worker:
            for turns in range(4):
                task = asyncio.ensure_future(wait_for_it(worker))
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await worker.prompt_logprobs(assistant.text_prompt("a"), 0)
            assert worker.held.n_running == 0

    asyncio.run(ask())


def test_a_wrong_request_is_refused_at_once_and_harms_nobody(assistant: Assistant) -> None:
    async def ask() -> dict[tuple[int, int], str]:
        good, bad = (assistant.text_prompt("a"), GREEDY), (Prompt([10**6], None), GREEDY)
        async with working(assistant) as worker, worker.answer([good]) as answers:
            async with worker.answer([good, bad]) as refused:
                with pytest.raises(PromptError, match="1000000"):
                    await texts_of(refused)
            return await texts_of(answers)

    assert asyncio.run(ask()) == {(0, 0): greedy(assistant, "a")}


def test_a_failing_step_ends_what_runs_and_the_worker_goes_on(assistant: Assistant) -> None:
    async def ask() -> dict[tuple[int, int], str]:
        async with working(assistant) as worker:
            norm = assistant.model.norm.weight
            sound = norm.clone()
            norm.fill_(float("nan"))
            try:
                async with worker.answer([(assistant.text_prompt("a"), GREEDY)]) as answers:
                    with pytest.raises(WeightsError, match="not finite"):
                        await texts_of(answers)
            finally:
                norm.copy_(sound)
            async with worker.answer([(assistant.text_prompt("a"), GREEDY)]) as answers:
                return await texts_of(answers)

    assert asyncio.run(ask()) == {(0, 0): greedy(assistant, "a")}


def test_places_are_bounded_and_given_back(assistant: Assistant) -> None:
    worker = Worker(ThreadStepper(assistant), Metrics("m"), layers=[], max_open=3)
    with worker.place(2):
        with worker.place(1), pytest.raises(CapacityError, match="at most 3"), worker.place(1):
            pass
        assert worker.n_open == 2
    assert worker.n_open == 0


def test_prompt_logprobs_are_those_of_the_assistant(assistant: Assistant) -> None:
    async def ask() -> Any:
        async with working(assistant) as worker:
            return await worker.prompt_logprobs(assistant.text_prompt("abc"), 2)

    assert asyncio.run(ask()) == assistant.prompt_logprobs(assistant.text_prompt("abc"), 2)


def test_whoever_is_late_gets_what_has_come_at_once_and_a_failure_ends_it() -> None:
    def piece(text: str, finish: Any = None) -> Piece:
        return Piece(0, text, 1, None, finish)

    async def take(answers: Answers) -> str:
        return "".join(piece.text for _, piece in await asyncio.wait_for(answers.next(), 10))

    async def follow() -> None:
        answers = Answers(lambda *_: None)
        answers.put(0, piece("a"))
        assert await take(answers) == "a"
        answers.put(0, piece("b"))
        answers.put(0, piece("c"))
        answers.put(0, piece("d", finish="stop"))
        assert await take(answers) == "bcd"
        answers.fail(WeightsError("gone"))
        with pytest.raises(WeightsError):
            await answers.next()
        assert answers.is_over

    asyncio.run(follow())
