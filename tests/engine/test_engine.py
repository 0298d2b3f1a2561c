from pathlib import Path

import pytest
import torch

from puna.engine.blocks import Counts
from puna.engine.engine import Engine, score
from puna.engine.request import Event, Output, Request, Sampling
from puna.errors import CapacityError, PromptError, WeightsError
from puna.model.transformer import Llama
from puna.weights.checkpoint import load
from tests.reference.tiny import PATCH_ID, TILE_TOKENS, random_ids, read_whole, write_tiny_checkpoint


def greedy_plain(model: Llama, ids: list[int], n: int, features: torch.Tensor | None = None) -> list[int]:
    """Greedy decoding without a cache: a full forward for every token, patch ids barred as the engine does."""
    ids = list(ids)
    for _ in range(n):
        logits = read_whole(model, ids, features)[-1]
        logits[PATCH_ID] = -torch.inf
        ids.append(int(logits.argmax()))
    return ids[-n:]


def greedy(n: int, **changes: object) -> Sampling:
    return Sampling(temperature=0, max_new_tokens=n, **changes)  # type: ignore[arg-type]


def drain(engine: Engine) -> list[Event]:
    events = []
    while not engine.is_idle:
        events += engine.step()
        engine.check_integrity()
    return events


def test_requests_of_unequal_lengths_get_what_each_gets_alone(model: Llama) -> None:
    lens = [3, 40, 1, 8, 17]
    requests = [Request(ids=random_ids(n, n), sampling=greedy(20 - i)) for i, n in enumerate(lens)]
    for max_step_tokens in (3, 10, 1000):
        outputs = Engine(model, max_step_tokens=max_step_tokens, max_sequences=2).run(requests)
        for request, (output,) in zip(requests, outputs, strict=True):
            n = request.sampling.max_new_tokens
            assert output == Output(greedy_plain(model, list(request.ids), n or 0), [], "length")


def test_images_are_read_across_steps_and_beside_other_requests(model: Llama) -> None:
    tiles = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    image = [PATCH_ID] * TILE_TOKENS
    ids = random_ids(6, 1) + image + random_ids(3, 2) + image * 2 + random_ids(2, 3)
    requests = [
        Request(ids=random_ids(9, 4), sampling=greedy(12)),
        Request(ids=ids, tiles=tiles, sampling=greedy(12)),
        Request(ids=[*image, 7], tiles=tiles[:1], sampling=greedy(12)),
    ]
    expected = [
        greedy_plain(model, list(r.ids), 12, None if r.tiles is None else model.embed_tiles(r.tiles)) for r in requests
    ]
    for max_step_tokens in (4, 7, 1000):
        outputs = Engine(model, max_step_tokens=max_step_tokens, max_sequences=3).run(requests)
        assert [output.ids for (output,) in outputs] == expected


def test_a_seeded_request_gives_the_same_ids_alone_and_in_a_crowd(model: Llama) -> None:
    request = Request(ids=random_ids(11, 1), sampling=Sampling(seed=7, temperature=1.0, max_new_tokens=25))
    crowd = [Request(ids=random_ids(n, n), sampling=Sampling(max_new_tokens=n)) for n in range(2, 9)]
    alone = Engine(model).run([request])[0]
    assert Engine(model, max_step_tokens=13, max_sequences=8).run([*crowd[:3], request, *crowd[3:]])[3] == alone


def test_n_samples_share_their_prompt_and_equal_requests_with_the_next_seeds(model: Llama) -> None:
    ids = random_ids(30, 1)

    def request(seed: int, n: int) -> Request:
        return Request(ids=ids, n=n, sampling=Sampling(seed=seed, temperature=1.5, top_p=1.0, max_new_tokens=12))

    together = Engine(model).run([request(5, 3)])[0]
    assert together == [Engine(model).run([request(seed, 1)])[0][0] for seed in (5, 6, 7)]
    assert len({tuple(output.ids) for output in together}) == 3
    n_read: list[int] = []
    with model.embedding.register_forward_hook(lambda *call: n_read.append(len(call[1][0]))):
        Engine(model).run([request(5, 3)])
    assert n_read == [30] + [3] * 11


def test_a_picture_is_seen_once_for_all_samples_and_pieces_of_its_prompt(model: Llama) -> None:
    tiles = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    request = Request(ids=[PATCH_ID] * 8, tiles=tiles, n=3, sampling=greedy(5))
    n_seen: list[int] = []
    assert model.vision is not None
    with model.vision.register_forward_hook(lambda *call: n_seen.append(len(call[1][0]))):
        Engine(model, max_step_tokens=4, max_sequences=3).run([request])
    assert n_seen == [2]


def test_a_stop_id_ends_the_sample_and_is_reported_last(model: Llama) -> None:
    ids = random_ids(5, 1)
    plain = greedy_plain(model, ids, 10)
    stop = plain[4]
    (output,) = Engine(model).run([Request(ids=ids, sampling=greedy(10, stop_ids=frozenset({stop})))])[0]
    assert output.ids == plain[: plain.index(stop) + 1]
    assert output.finish == "stop"


def test_logprobs_of_the_engine_are_those_of_a_full_forward(model: Llama) -> None:
    ids = random_ids(9, 1)
    (output,) = Engine(model).run([Request(ids=ids, sampling=greedy(5, n_logprobs=2))])[0]
    expected = read_whole(model, ids + output.ids).log_softmax(-1)[len(ids) - 1 :]
    for token, logprobs, row in zip(output.ids, output.logprobs, expected, strict=False):
        assert logprobs.chosen == pytest.approx(float(row[token]), abs=1e-4)  # float32 through four layers
        assert len(logprobs.top) == 2


def test_every_step_gives_one_event_per_decoding_sample(model: Llama) -> None:
    engine = Engine(model)
    first = engine.add(Request(ids=[1, 2, 3], sampling=greedy(3)))
    assert [event.request_id for event in engine.step()] == [first]
    second = engine.add(Request(ids=[4], sampling=greedy(2), n=2))
    assert [(e.request_id, e.sample) for e in engine.step()] == [(first, 0), (second, 0), (second, 1)]
    assert [(e.request_id, e.sample, e.finish) for e in engine.step()] == [
        (first, 0, "length"),
        (second, 0, "length"),
        (second, 1, "length"),
    ]
    assert engine.is_idle


def test_abort_ends_a_request_wherever_it_is(model: Llama) -> None:
    engine = Engine(model, max_step_tokens=4, max_sequences=3)
    reading = engine.add(Request(ids=random_ids(20, 1), sampling=greedy(5), n=2))
    decoding = engine.add(Request(ids=[1], sampling=greedy(50)))
    waiting = engine.add(Request(ids=[2], sampling=greedy(5)))
    engine.step()
    assert (engine.n_running, engine.n_waiting) == (3, 1)
    assert engine.abort(reading, sample=1) == [Event(reading, 1, None, None, "abort")]
    assert engine.abort(waiting) == [Event(waiting, 0, None, None, "abort")]
    assert engine.abort(decoding) == [Event(decoding, 0, None, None, "abort")]
    assert engine.abort(decoding) == []
    events = drain(engine)
    assert [event.token for event in events] == greedy_plain(model, random_ids(20, 1), 5)
    assert {(event.request_id, event.sample) for event in events} == {(reading, 0)}


def test_decoding_goes_on_while_a_long_prompt_is_read(model: Llama) -> None:
    engine = Engine(model, max_step_tokens=8, max_sequences=4)
    short = engine.add(Request(ids=[1], sampling=greedy(20)))
    engine.step()
    engine.add(Request(ids=random_ids(60, 1), sampling=greedy(1)))
    assert all(short in [event.request_id for event in engine.step()] for _ in range(9))


def test_a_request_that_cannot_run_is_refused_before_it_is_queued(model: Llama) -> None:
    engine = Engine(model, max_sequences=2)
    with pytest.raises(CapacityError, match="n is 3"):
        engine.add(Request(ids=[1], n=3))
    with pytest.raises(PromptError, match="context"):
        engine.add(Request(ids=[1] * 600))
    assert engine.is_idle


def test_what_could_never_fit_is_refused_and_what_has_no_end_ends_where_memory_does(model: Llama) -> None:
    engine = Engine(model, n_blocks=Counts(5, 3))  # of 8 positions each
    assert len(engine.run([Request(ids=random_ids(20, 1), sampling=greedy(21))])[0][0].ids) == 21
    with pytest.raises(CapacityError, match=r"20 tokens and max_new_tokens 22 exceed the 40 positions .* kv_bytes"):
        engine.add(Request(ids=random_ids(20, 1), sampling=greedy(22)))
    with pytest.raises(CapacityError, match="42 tokens and max_new_tokens 1"):
        engine.add(Request(ids=random_ids(42, 1)))
    assert engine.is_idle
    ((endless,),) = engine.run([Request(ids=random_ids(20, 1), sampling=Sampling(temperature=0))])
    assert (len(endless.ids), endless.finish) == (21, "length")
    engine.check_integrity()


def test_what_is_late_ends_wherever_it_is(model: Llama) -> None:
    now = [100.0]
    engine = Engine(model, max_sequences=2, clock=lambda: now[0])
    late, endless, waiting = (
        engine.add(Request(ids=[1, 2], sampling=greedy(99), deadline_seconds=deadline))
        for deadline in (103.0, None, 102.0)
    )
    assert {event.request_id for event in engine.step()} == {waiting, late}  # what is due first
    now[0] = 102.0
    first, *others = engine.step()
    assert first == Event(waiting, 0, None, None, "abort")
    assert {event.request_id for event in others} == {late, endless}
    now[0] = 200.0
    assert engine.step()[0] == Event(late, 0, None, None, "abort")
    assert engine.running == [(endless, 0)]
    engine.check_integrity()


def test_blocks_are_free_at_once_when_a_request_is_aborted(model: Llama) -> None:
    engine = Engine(model, max_step_tokens=70)
    number = engine.add(Request(ids=random_ids(100, 1), sampling=greedy(9), n=3))
    engine.step()
    assert engine.load.n_held_blocks.n_global == 9
    engine.abort(number)
    assert engine.load.n_held_blocks == Counts(0, 0)
    engine.check_integrity()


def test_a_failed_step_leaves_nothing_behind_and_nothing_of_it_is_remembered(model: Llama) -> None:
    engine = Engine(model)
    request = Request(ids=random_ids(30, 1), sampling=greedy(5))
    expected = Engine(model).run([request])
    engine.add(request)
    weight = model.layers[0].attention.value.weight
    sound = weight.clone()
    weight.fill_(float("nan"))
    try:
        with pytest.raises(WeightsError, match="not finite"):
            engine.step()
    finally:
        weight.copy_(sound)
    assert engine.is_idle
    engine.check_integrity()
    assert engine.run([request]) == expected
    assert engine.load.n_cached_tokens == 0


def test_changed_weights_are_another_model_once_the_old_is_forgotten(model: Llama) -> None:
    engine = Engine(model)
    request = Request(ids=random_ids(30, 1), sampling=greedy(5))
    engine.run([request])
    weight = model.layers[3].attention.value.weight
    sound = weight.clone()
    weight.mul_(-3)
    try:
        engine.forget()
        assert engine.run([request]) == Engine(model).run([request])
    finally:
        weight.copy_(sound)
    assert engine.load.n_cached_tokens == 0


def test_score_equals_a_full_forward_with_images_on_piece_borders(
    model: Llama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puna.engine.engine.MAX_STEP_TOKENS", 7)
    tiles = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3)) * 2 - 1
    ids = random_ids(5, 1) + [PATCH_ID] * 4 + random_ids(4, 2) + [PATCH_ID] * 4 + random_ids(3, 3)
    expected = read_whole(model, ids, model.embed_tiles(tiles))
    torch.testing.assert_close(score(model, ids, tiles), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n_images", [0, 2])
def test_greedy_ids_equal_those_of_transformers_across_chunks(tmp_path: Path, n_images: int) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_tiny_checkpoint(tmp_path / "tiny")
    reference = transformers.Llama4ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    model = load(folder)
    patch_id = model.config.patch_id
    assert patch_id is not None
    ids = random_ids(9, 1)
    for i in range(n_images):
        ids += [patch_id] * TILE_TOKENS + random_ids(3, i)
    tiles = torch.rand(n_images, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1 if n_images else None
    request = Request(ids=ids, tiles=tiles, sampling=greedy(25))
    ((output,),) = Engine(model, max_step_tokens=5, max_sequences=2).run([request])
    expected = list(ids)
    for _ in range(25):
        with torch.no_grad():
            logits = reference(torch.tensor([expected]), pixel_values=tiles, use_cache=False).logits[0, -1]
        logits[patch_id] = -torch.inf
        expected.append(int(logits.argmax()))
    assert output.ids == expected[len(ids) :]
