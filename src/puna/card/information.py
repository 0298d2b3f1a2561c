"""What a model is: the card's "Model information" and "Intended use".

In: records. Out: sections. Sizes are counted from the configuration, everything that cannot be is declared or missing.
"""

from puna.card import memory, params
from puna.card.document import Block, Items, Missing, Section, Table, Text, declared
from puna.card.records import Records, total
from puna.card.words import language, listed, short, size, whole
from puna.config import LlamaConfig


def information(records: Records) -> Section:
    """Returns the section that says what the model is."""
    said = records.declared
    blocks: list[Block] = [Text(declared(said.summary))] if said.summary else []
    blocks.append(Table(("", ""), tuple(_rows(records)), 2))
    blocks.append(_parts(records))
    if not said.license:
        blocks.append(Missing("the licence", "declare `license` in card.toml"))
    return Section(title="Model information", blocks=tuple(blocks))


def use(records: Records) -> Section:
    """Returns the section about what the model is for."""
    said = records.declared
    pairs = (("intended", said.intended), ("out of scope", said.out_of_scope))
    blocks = [
        Text(f"**{name.capitalize()}.** {declared(text)}")
        if text
        else Missing(f"what is {name}", f"declare `{name.replace(' ', '_')}` in card.toml")
        for name, text in pairs
    ]
    return Section(title="Intended use", blocks=tuple(blocks))


def architecture(config: LlamaConfig) -> str:
    """Returns a configuration in a sentence."""
    text, n_moe = config.text, len(config.text.moe_layers)
    what = [f"auto-regressive decoder of {text.n_layers} layers, width {text.width:,}"]
    what.append(f"{text.n_heads} query and {text.n_kv_heads} key/value heads of {text.head_dim}")
    if n_moe:
        where = "in every layer" if n_moe == text.n_layers else f"in {n_moe} of {text.n_layers} layers"
        what.append(
            f"mixture of {text.n_experts} experts {where}, {text.n_active_experts} chosen for a token, and one shared"
        )
    else:
        what.append("dense")
    if text.chunk_len and text.rope_layers:
        n_global = text.n_layers - len(text.rope_layers)
        what.append(f"attention in chunks of {text.chunk_len:,} tokens, global without positions in {n_global} layers")
    if config.vision is not None:
        tower = config.vision
        what.append(
            f"early fusion with a vision tower of {tower.n_layers} layers that reads tiles of {tower.tile_size} pixels "
            f"as {tower.tokens_per_tile} tokens each, at most {tower.max_tiles} a picture and a global one"
        )
    return "; ".join(what)


def base_of(records: Records) -> str:
    """Returns what the last run tuned, "" where it trained from the beginning or nobody knows."""
    last = records.training[-1].recipe.get("model", {}) if records.training else {}
    return str(last.get("base") or "")


def _rows(records: Records) -> list[tuple[str, str]]:
    config, said = records.config, records.declared
    count, tokens = params.count(config), total(run.tokens for run in records.training)
    licence = said.license_name or said.license
    n_runs = len(records.training)
    dates = [run.ended[:10] for run in records.training if run.ended]
    rows = [
        ("Developer", declared(said.developer)),
        ("Architecture", architecture(config) + (f". {declared(said.architecture)}" if said.architecture else "")),
        ("Parameters", f"{short(count.activated)} activated, {short(count.total)} in total"),
        ("Input modalities", "text and image" if config.vision is not None else "text"),
        ("Output modalities", "text"),
        ("Context length", f"{whole(config.text.context_len)} tokens"),
        ("Vocabulary", f"{whole(config.text.vocab_size)} tokens"),
        ("Weights", size(records.weights_bytes) if records.weights_bytes else ""),
        ("Languages", declared(listed([language(code) for code in said.languages]))),
        ("Training tokens", f"{whole(tokens)} in {n_runs} run{'s' * (n_runs > 1)}" if tokens else ""),
        ("Trained until", max(dates) if dates else ""),
        ("Data cutoff", declared(said.data_cutoff)),
        ("Base model", declared(said.base_model) or base_of(records)),
        ("Released", declared(said.released)),
        ("Status", declared(said.status)),
        ("Licence", declared(f"[{licence}]({said.license_link})" if said.license_link else licence)),
        ("Questions", declared(said.contact)),
    ]
    optional = {"Base model", "Status", "Questions", "Weights"}
    return [(name, text or "not recorded") for name, text in rows if text or name not in optional]


def _parts(records: Records) -> Table:
    count = params.count(records.config)
    stored = memory.by_part(records.config, memory.SCHEMES["none"], records.float_bytes)
    rows = [
        (part.replace("_", " "), whole(n), f"{n / count.total:.1%}", size(stored[part]))
        for part, n in count.parts.items()
        if n
    ]
    rows.append(("**in all**", whole(count.total), "100.0%", size(sum(stored.values()))))
    kind = {2: "16-bit", 4: "32-bit"}.get(records.float_bytes, f"{8 * records.float_bytes}-bit")
    return Table(
        ("Part", "Parameters", "Share", f"{kind} floats"), tuple(rows), 1, "Parameters, counted from the configuration"
    )


def considerations(records: Records) -> Section:
    """Returns the section about limits: what was declared, and what holds for any model."""
    general = (
        "No test covers all that a model may be asked. Before anything is built on this one, test it for that use, in "
        "the languages and with the pictures that will occur there."
    )
    blocks: tuple[Block, ...] = (Text(general),)
    if records.declared.limits:
        blocks = (Items(tuple(declared(each) for each in records.declared.limits)), *blocks)
    else:
        blocks = (Missing("what this model is known to do wrong", "declare `limits` in card.toml"), *blocks)
    return Section(title="Considerations and limitations", blocks=blocks)
