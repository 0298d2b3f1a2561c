"""The model that ships: small enough, complete, and the same in transformers as here."""

from pathlib import Path

import pytest
import torch
from PIL import Image

import puna
from puna.chat import Assistant
from puna.kernels import native
from puna.presets import CRIA
from puna.prompt.message import Message

FOLDER = Path(puna.__file__).parent / "assets" / "cria"
PICTURES = Path(__file__).parents[2] / "examples" / "pictures"
MOST_BYTES = 32 * 2**20

pytestmark = pytest.mark.skipif(
    not list(FOLDER.glob("*.safetensors")), reason="the weights of cria are not in src/puna/assets/cria"
)


@pytest.fixture(scope="module")
def llama() -> Assistant:
    return puna.load("cria", dtype="float32")


def question(picture: str, text: str) -> list[dict[str, object]]:
    image = {"type": "image", "image": PICTURES / picture}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


def test_cria_is_small_and_complete(llama: Assistant) -> None:
    assert sum(file.stat().st_size for file in FOLDER.rglob("*") if file.is_file()) <= MOST_BYTES
    assert llama.config == CRIA
    assert {"README.md", "ATTRIBUTION.md", "tokenizer.json", "config.json"} <= {file.name for file in FOLDER.iterdir()}


@torch.inference_mode()
def test_transformers_loads_cria_unchanged_with_equal_logits(llama: Assistant) -> None:
    """Both in float32, sums in another order: 1e-4 of the logits' spread is far above rounding, far below a mistake."""
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoModelForImageTextToText.from_pretrained(FOLDER, dtype=torch.float32).eval()
    for prompt in (llama.text_prompt("One day, a little girl " * 40), llama.prompt(question("chart.png", "What?"))):
        pixels = {} if prompt.tiles is None else {"pixel_values": prompt.tiles}
        expected = theirs(input_ids=torch.tensor([prompt.ids]), use_cache=False, **pixels).logits[0]
        difference = (llama.logits(prompt.ids, prompt.tiles) - expected).abs().max() / expected.std()
        assert difference.item() < 1e-4


def test_its_tokenizer_gives_the_same_ids_in_transformers(llama: Assistant) -> None:
    theirs = pytest.importorskip("transformers").AutoTokenizer.from_pretrained(FOLDER)
    for text in (
        "One day, a lion came.",
        "¿Qué es esto?",
        "यह क्या है?",
        "นี่คืออะไร",
        "ما هذا؟  \n\n 3+4=7",
        "🍎 <|eot|x>",
    ):
        assert theirs.encode(text, add_special_tokens=False) == llama.tokenizer.encode(text)
        assert theirs.decode(llama.tokenizer.encode(text)) == text


@pytest.mark.parametrize("picture", ["cat.png", "chart.png"])
def test_its_processor_cuts_and_writes_a_question_as_we_do(llama: Assistant, picture: str) -> None:
    """transformers scales pixels in another order: half a step of 8 bits is allowed."""
    processor = pytest.importorskip("transformers").AutoProcessor.from_pretrained(FOLDER)
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    image = Image.open(PICTURES / picture).convert("RGB")
    theirs = processor(text=text, images=[image], return_tensors="pt", add_special_tokens=False)
    ours = llama.prompt(question(picture, "What is this?"))
    assert theirs["input_ids"][0].tolist() == ours.ids
    assert ours.tiles is not None
    torch.testing.assert_close(theirs["pixel_values"].float(), ours.tiles, atol=1 / 255, rtol=0)


def test_an_answer_streams_ends_and_repeats_with_a_seed(llama: Assistant) -> None:
    asked = question("cat.png", "What is this?")
    whole = llama.chat(asked, temperature=0.7, seed=5, max_new_tokens=40)
    assert isinstance(whole, Message)
    pieces = "".join(llama.stream_chat(asked, temperature=0.7, seed=5, max_new_tokens=40))
    assert pieces == whole.text and pieces


def test_drafts_change_no_answer_of_cria() -> None:
    """As stored with the native kernels, whose rows do not depend on how many a step reads. Those of torch do, by
    rounding, which float32 makes small."""
    dtype = None if native.available() else "float32"
    plain, by_lookup, by_itself = (puna.load("cria", speculate=how, dtype=dtype) for how in (None, "lookup", "cria"))
    text = "The cat sat on the mat. The dog sat on the mat. The cat"
    for options in ({"temperature": 0.0}, {"seed": 3}, {"seed": 5, "temperature": 1.2, "top_p": 1.0}):
        expected = plain.extend(text, max_new_tokens=60, **options).answers
        seen = plain.respond(question("chart.png", "What?"), max_new_tokens=20, **options).answers
        for drafting in (by_lookup, by_itself):
            assert drafting.extend(text, max_new_tokens=60, **options).answers == expected
            assert drafting.respond(question("chart.png", "What?"), max_new_tokens=20, **options).answers == seen
    assert all(drafting.drafts[1] > 0 for drafting in (by_lookup, by_itself))
