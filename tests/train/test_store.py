"""What is learnt, which tiles belong to whom, and that a store is made once."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from puna.config import LlamaConfig
from puna.errors import ConfigError, PromptError
from puna.prompt.tiles import cut
from puna.prompt.tokenizer import Tokenizer
from puna.train.next_token import normalise
from puna.train.store import Encoder, Store, tokenise


@pytest.fixture(scope="module")
def encode(documents: Path, tiny: Path, tiny_model_config: LlamaConfig) -> Encoder:
    return Encoder(Tokenizer.load(tiny), tiny_model_config.vision, documents.parent)


def learnt(encode: Encoder, ids: list[int], weights: list[int]) -> str:
    return encode.tokenizer.decode([i for i, weight in zip(ids, weights, strict=True) if weight])


def test_all_text_of_a_plain_document_and_its_end_are_learnt_but_no_image_slot(encode: Encoder) -> None:
    image = {"type": "image", "path": "pictures/1.png"}
    ids, weights, pictures = encode({"content": [image, {"type": "text", "text": "grass"}]})
    assert learnt(encode, ids, weights) == "grass<|end_of_text|>"
    assert encode.tokenizer.decode(ids[:2]) == "<|begin_of_text|><|image_start|>"
    assert pictures == ["pictures/1.png"]


def test_only_the_assistant_is_learnt_in_a_chat_with_the_end_of_its_turns(encode: Encoder) -> None:
    messages = [
        {"role": "system", "content": "short"},
        {"role": "user", "content": [{"type": "image", "path": "pictures/0.png"}, {"type": "text", "text": "what?"}]},
        {"role": "assistant", "content": "grass"},
        {"role": "user", "content": "assistant"},
        {"role": "assistant", "content": "sun"},
    ]
    ids, weights, _ = encode({"messages": messages})
    assert learnt(encode, ids, weights) == "grass<|eot|>sun<|eot|>"


def test_stored_tiles_are_exactly_those_of_the_prompt(
    store: Store, documents: Path, tiny_model_config: LlamaConfig
) -> None:
    vision = tiny_model_config.vision
    assert vision is not None
    document = store.names.index("d4")  # plain, picture 1: larger than a tile
    refs = store.tile_refs[store.tile_offsets[document] : store.tile_offsets[document + 1]]
    with Image.open(documents.parent / "pictures" / "1.png") as image:
        expected = cut(image.convert("RGB"), tile_size=vision.tile_size, max_tiles=vision.max_tiles).pixels
    assert len(refs) > 1
    torch.testing.assert_close(normalise(torch.from_numpy(np.array(store.tiles[refs]))), expected, atol=1e-6, rtol=0.0)


def test_a_picture_that_many_documents_share_is_stored_once(store: Store) -> None:
    assert len(store.tile_refs) > 3 * len(store.tiles)
    assert set(store.tile_refs.tolist()) == set(range(len(store.tiles)))


def test_a_store_is_made_once_and_anew_when_the_documents_change(
    documents: Path, tiny: Path, tiny_model_config: LlamaConfig, tmp_path: Path
) -> None:
    said: list[str] = []
    changed = tmp_path / "train.jsonl"
    for text, made in (("a", 1), ("a", 1), ("b", 2)):
        changed.write_text(json.dumps({"content": [{"type": "text", "text": text}]}) + "\n\n", encoding="utf-8")
        made_store = tokenise(changed, tiny, tiny_model_config.vision, tmp_path / "store", said.append)
        assert made_store.n_documents == 1 and len(said) == made
    assert not list((tmp_path / "store").glob("*.partial"))


@pytest.mark.parametrize(
    "line", ["{", '{"text": "neither form"}', '{"content": [{"type": "image", "path": "none.png"}]}']
)
def test_a_document_that_cannot_be_read_is_named_by_its_line(
    line: str, tiny: Path, tiny_model_config: LlamaConfig, tmp_path: Path
) -> None:
    path = tmp_path / "train.jsonl"
    path.write_text('{"content": []}\n' + line + "\n", encoding="utf-8")
    for _ in range(2):  # what the first try has left is not in the way
        with pytest.raises(PromptError, match="line 2"):
            tokenise(path, tiny, tiny_model_config.vision, tmp_path / "store", lambda said: None)


def test_pictures_for_a_text_model_and_missing_files_are_refused(documents: Path, tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(PromptError, match="without vision"):
        tokenise(documents, tiny, None, tmp_path, lambda said: None)
    with pytest.raises(ConfigError, match=r"data.documents: .* does not exist"):
        tokenise(tmp_path / "none.jsonl", tiny, None, tmp_path, lambda said: None)
