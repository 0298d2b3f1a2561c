import torch

from puna.engine.engine import Engine
from puna.engine.request import Event, Request, Sampling
from puna.engine.routes import RouteCounts, counted
from puna.engine.runner import tells_routes
from puna.engine.speculate import Lookup
from puna.model.mask import Packed
from puna.model.transformer import Llama

GREEDY = Sampling(temperature=0.0, max_new_tokens=6)


def events_of(engine: Engine, *requests: Request) -> dict[int, list[Event]]:
    events: dict[int, list[Event]] = {engine.add(request): [] for request in requests}
    while not engine.is_idle:
        for event in engine.step():
            events[event.request_id].append(event)
    return events


def expected(model: Llama, ids: list[int]) -> torch.Tensor:
    """The experts [M T k] that a forward over all of a text chooses."""
    hidden = model.hidden(torch.tensor(ids), torch.arange(len(ids)), Packed.single(model.config.text, len(ids)))
    return torch.stack([route.experts for route in hidden.routes])


def test_each_token_tells_the_experts_of_the_position_that_it_was_chosen_at(model: Llama) -> None:
    ids = [1, 5, 9, 5, 9, 5, 9, 5]
    for proposer in (None, Lookup()):
        engine = Engine(model, max_step_tokens=5, max_sequences=4, proposer=proposer)  # the prompt takes two steps
        asked, silent = events_of(
            engine, Request(ids=ids, sampling=GREEDY, wants_routes=True), Request(ids=[3, 4], sampling=GREEDY)
        ).values()
        assert all(event.routes is None for event in silent)
        made = [event.token for event in asked if event.token is not None]
        routes = expected(model, [*ids, *made])
        told = [event.routes for event in asked if event.routes is not None]
        assert [each.made for each in told] == routes[:, len(ids) - 1 : -1].transpose(0, 1).tolist()
        n_experts = model.config.text.n_experts
        assert told[0].read == counted(routes[:, : len(ids)], n_experts).tolist()
        assert all(each.read is None for each in told[1:])


def test_all_steps_are_counted_where_that_is_wanted(model: Llama) -> None:
    engine = Engine(model)
    events_of(engine, Request(ids=[1, 2, 3], sampling=GREEDY))
    assert not any(map(sum, engine.route_counts.totals()))
    engine.counts_routes = True
    events_of(engine, Request(ids=[7, 8, 9, 10], sampling=GREEDY))
    n_read = 4 + 6 - 1
    assert tells_routes(engine._runner)
    assert [sum(of_layer) for of_layer in engine.route_counts.totals()] == [
        n_read * model.config.text.n_active_experts for _ in model.config.text.moe_layers
    ]


def test_totals_are_exact_however_many_steps_were_kept() -> None:
    generator = torch.Generator().manual_seed(0)
    steps = [torch.randint(0, 5, (2, n, 1), generator=generator, dtype=torch.int32) for n in range(1, 150)]
    counts = RouteCounts(2, 5)
    for step in steps:
        counts.add(step)
    every = torch.cat(steps, dim=1)
    plain = [[int((every[layer] == expert).sum()) for expert in range(5)] for layer in range(2)]
    assert counts.totals() == plain == counts.totals()
