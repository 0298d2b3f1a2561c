"""Messages from and to dictionaries, and pictures from every source."""

import base64
import json
import random
import struct
import zlib
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from puna.errors import PromptError
from puna.prompt.message import (
    IMAGE_FORMATS,
    MAX_PIXELS,
    ImagePart,
    Message,
    TextPart,
    Tool,
    ToolCall,
    open_image,
)
from puna.prompt.tiles import cut

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)
NAMES = st.from_regex(r"[\w.:/-]+", fullmatch=True)
CALLS = st.builds(
    ToolCall, name=NAMES, arguments=st.dictionaries(st.text(), JSON_VALUES, max_size=4), id=st.none() | st.text()
)
TEXTS = st.lists(st.builds(TextPart, st.text()), max_size=3).map(tuple)
MESSAGES = (
    st.builds(Message, role=st.sampled_from(("system", "user", "assistant")), content=TEXTS)
    | st.builds(Message, role=st.just("assistant"), content=TEXTS, tool_calls=st.lists(CALLS, max_size=3).map(tuple))
    | st.builds(Message, role=st.just("tool"), content=TEXTS, call_id=st.none() | st.text())
)


def _encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def _data_url(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()


RED = Image.new("RGB", (4, 3), (200, 10, 10))


# Messages ---------------------------------------------------------------------------------------------------------


@given(message=MESSAGES)
@settings(max_examples=200, deadline=None)
def test_a_message_survives_the_way_through_a_dictionary_and_json(message: Message) -> None:
    assert Message.from_dict(message.to_dict()) == message
    assert Message.from_dict(json.loads(json.dumps(message.to_dict()))) == message


def test_openais_shape_is_read() -> None:
    message = Message.from_dict(
        {
            "role": "assistant",
            "content": None,
            "refusal": None,
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
                {"function": {"name": "g", "arguments": {"b": [None]}, "parsed_arguments": {"b": "dropped"}}},
                {"function": {"name": "h", "arguments": ""}},
            ],
        }
    )
    assert message.tool_calls == (ToolCall("f", {"a": 1}, "c1"), ToolCall("g", {"b": [None]}), ToolCall("h", {}))
    assert message.content == () and message.text == ""
    assert Message.from_dict({"role": "developer", "content": "x"}) == Message("system", (TextPart("x"),))
    result = Message.from_dict({"role": "tool", "content": "4", "tool_call_id": "c1", "name": "f"})
    assert result == Message("tool", (TextPart("4"),), call_id="c1")


def test_text_joins_the_text_parts_and_images_lists_the_pictures() -> None:
    message = Message("user", (TextPart("a"), ImagePart(RED), TextPart("b")))
    assert message.text == "ab"
    assert message.images == (RED,)


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ([], "message: is of type list; give an object"),
        ({"content": "x"}, "message.role: is None; expected one of system"),
        ({"role": "human", "content": "x"}, "message.role: is 'human'"),
        ({"role": "user", "content": 5}, "message.content: is of type int; give a string or a list"),
        ({"role": "user", "content": {"type": "text"}}, "message.content: is of type dict"),
        ({"role": "user", "content": ["x"]}, r"message.content\[0\]: is of type str; give an object"),
        ({"role": "user", "content": [{"type": "text"}]}, r"message.content\[0\].text: is missing"),
        ({"role": "user", "content": [{"type": "audio"}]}, r"message.content\[0\].type: is 'audio'; expected"),
        ({"role": "user", "content": [{"type": "text", "text": "x", "x": 1}]}, r"message.content\[0\].x: is not supp"),
        ({"role": "user", "content": "x", "name": "Ann"}, "message.name: is not supported"),
        ({"role": "user", "content": "x", "tool_calls": {"a": 1}}, "message.tool_calls: is of type dict; give a list"),
        ({"role": "user", "content": "x", "tool_call_id": "c"}, "message.tool_call_id: belongs to a tool"),
        (
            {"role": "user", "content": "", "tool_calls": [{"function": {"name": "f"}}]},
            "message.tool_calls: belongs to an assistant",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f(", "arguments": "{}"}}]},
            "name: is 'f\\('; use letters",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{"}}]},
            r"message.tool_calls\[0\].function.arguments: is not valid JSON",
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "[1]"}}]},
            r"message.tool_calls\[0\].function.arguments: is of type list; give an object",
        ),
        ({"role": "assistant", "tool_calls": [{"type": "x", "function": {}}]}, "type: is 'x'; only 'function' exists"),
        ({"role": "assistant", "tool_calls": [3]}, r"message.tool_calls\[0\]: is of type int"),
    ],
)
def test_a_wrong_dictionary_is_refused_by_the_name_of_the_part(document: Any, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        Message.from_dict(document)


def test_errors_call_the_message_what_the_caller_calls_it() -> None:
    with pytest.raises(PromptError, match=r"^messages\[3\].content\[1\].type: is None"):
        Message.from_dict({"role": "user", "content": [{"type": "text", "text": ""}, {}]}, where="messages[3]")


@pytest.mark.parametrize(
    "arguments", [{"a": float("nan")}, {"a": [float("inf")]}, {"a": {1: 2}}, {"a": {2}}, {"a": b""}, {1: 2}, ["a"]]
)
def test_arguments_that_json_cannot_hold_are_refused(arguments: Any) -> None:
    with pytest.raises(PromptError):
        ToolCall("f", arguments)


def test_arguments_nested_too_deeply_are_refused() -> None:
    deep: object = 1
    for _ in range(100):
        deep = [deep]
    with pytest.raises(PromptError, match="nested deeper than 64"):
        ToolCall("f", {"a": deep})


# Tools ------------------------------------------------------------------------------------------------------------


def test_both_forms_of_a_tool_are_read() -> None:
    bare = {"name": "f", "description": "Does f", "parameters": {"type": "object", "properties": {}}}
    tool = Tool("f", "Does f", {"type": "object", "properties": {}})
    assert Tool.from_dict(bare) == Tool.from_dict({"type": "function", "function": bare}) == tool
    assert Tool.from_dict(tool.to_dict()) == tool
    assert Tool.from_dict({"name": "g"}) == Tool("g", "", {})


@pytest.mark.parametrize(
    ("document", "reason"),
    [
        ({"name": "a b"}, "tool name: is 'a b'"),
        ({"description": "x"}, "tool.name: is missing"),
        ({"name": "f", "parameters": "x"}, "tool.parameters: is of type str"),
        ({"type": "retrieval", "function": {"name": "f"}}, "tool.type: is 'retrieval'"),
        ({"name": "f", "strict": "yes"}, "tool.strict: is of type str"),
        ({"name": "f", "wish": True}, "tool.wish: is not supported"),
        (7, "tool: is of type int"),
    ],
)
def test_a_wrong_tool_is_refused(document: Any, reason: str) -> None:
    with pytest.raises(PromptError, match=reason):
        Tool.from_dict(document)


# Pictures ---------------------------------------------------------------------------------------------------------


def test_every_source_gives_the_same_picture(tmp_path: Path) -> None:
    data = _encoded(RED)
    (tmp_path / "red.png").write_bytes(data)
    sources: list[object] = [
        RED,
        data,
        bytearray(data),
        _data_url(data),
        str(tmp_path / "red.png"),
        tmp_path / "red.png",
    ]
    for source in sources:
        message = Message.from_dict({"role": "user", "content": [{"type": "image", "image": source}]})
        assert message.images[0].tobytes() == RED.tobytes()
    for link in ({"url": _data_url(data), "detail": "high"}, {"url": str(tmp_path / "red.png")}, _data_url(data)):
        message = Message.from_dict({"role": "user", "content": [{"type": "image_url", "image_url": link}]})
        assert message.images[0].tobytes() == RED.tobytes()


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "YCbCr", "HSV", "I", "F"])
def test_a_picture_survives_the_way_through_a_data_url(mode: str) -> None:
    message = Message("user", (ImagePart(open_image(RED.convert(mode))),))
    again = Message.from_dict(message.to_dict())
    tiles = [cut(image, tile_size=96, max_tiles=4).pixels for image in (message.images[0], again.images[0])]
    assert torch.equal(tiles[0], tiles[1])


def _broken_png() -> bytes:
    return _encoded(Image.effect_noise((64, 64), 50))[:900]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (None, "is missing; give a PIL image"),
        (7, "is of type int; give a PIL image"),
        (b"", "not an image in one of the formats PNG"),
        (b"GIF89a", "not an image in one of the formats"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image in one of the formats"),
        (_broken_png(), "damaged or incomplete"),
        ("http://example.org/a.png", "is not fetched here"),
        ("data:image/png;base64", "has no comma"),
        ("data:image/png;base64,@@@", "not valid base64"),
        ("/does/not/exist.png", "cannot read '/does/not/exist.png'"),
        ("a\0b", "cannot read"),
        (".", "cannot read"),
    ],
)
def test_a_wrong_picture_is_refused_by_the_name_of_the_part(source: object, reason: str) -> None:
    content = [{"type": "text", "text": "x"}, {"type": "image", "image": source}]
    with pytest.raises(PromptError, match=r"message.content\[1\].image: .*" + reason):
        Message.from_dict({"role": "user", "content": content})


@pytest.mark.filterwarnings("ignore")
def test_damaged_files_of_every_format_are_read_or_refused_but_never_crash() -> None:
    generator = random.Random(0)
    picture = Image.effect_mandelbrot((40, 30), (-2, -1.5, 1, 1.5), 50).convert("RGB")
    kinds = [kind for kind in (*IMAGE_FORMATS, "MPO") if kind in Image.SAVE]
    refused = 0
    for index in range(600):
        data = bytearray(_encoded(picture, kinds[index % len(kinds)]))
        for _ in range(generator.randrange(1, 8)):
            data[generator.randrange(min(len(data), generator.choice((40, 10_000))))] = generator.randrange(256)
        try:
            open_image(data[: generator.choice((len(data), len(data) // 2))])
        except PromptError:
            refused += 1
    assert refused > 100


def test_a_photo_of_several_pictures_gives_its_first() -> None:
    pictures = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    red, _, blue = open_image(_encoded(pictures[0], "MPO", save_all=True, append_images=pictures[1:])).getpixel((4, 4))
    assert red > 200 > 50 > blue


def test_files_are_not_read_where_paths_are_forbidden(tmp_path: Path) -> None:
    RED.save(tmp_path / "red.png")
    for part in (
        {"type": "image", "image": tmp_path / "red.png"},
        {"type": "image_url", "image_url": {"url": str(tmp_path / "red.png")}},
        {"type": "image_url", "image_url": {"url": "/does/not/exist"}},
    ):
        with pytest.raises(PromptError, match="reading files of this machine is not allowed"):
            Message.from_dict({"role": "user", "content": [part]}, paths=False)


def _png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a huge picture."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("size", [(10_000, 8_001), (10_000, 10_000), (20_000, 10_000), (2**31 - 1, 2**31 - 1)])
def test_a_picture_that_claims_too_many_pixels_is_never_decoded(size: tuple[int, int]) -> None:
    assert size[0] * size[1] > MAX_PIXELS
    with pytest.raises(PromptError, match=str(MAX_PIXELS)):
        open_image(_png_that_claims(*size))


def test_exif_rotation_is_applied() -> None:
    image = Image.new("RGB", (8, 4), (0, 0, 255))
    image.paste((255, 0, 0), (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn a quarter to the right to see it upright
    upright = open_image(_encoded(image, "JPEG", exif=exif, quality=95, subsampling=0))
    assert upright.size == (4, 8)
    red, _, blue = upright.getpixel((1, 0))  # type: ignore[misc]
    assert red > 200 > blue


def test_only_the_first_frame_of_an_animation_counts() -> None:
    frames = [Image.new("RGB", (6, 6), colour) for colour in ((255, 0, 0), (0, 255, 0))]
    for kind in ("GIF", "WEBP", "PNG"):
        data = _encoded(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
        assert open_image(data).convert("RGB").getpixel((0, 0)) == (255, 0, 0)
    image = Image.open(BytesIO(_encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])))
    image.seek(1)
    assert open_image(image).convert("RGB").getpixel((0, 0)) == (255, 0, 0)


def _transparent(mode: str) -> bytes:
    """A picture that is transparent as a whole, and black where somebody ignores that."""
    if mode == "P":
        return _encoded(Image.new("P", (5, 5), 0), transparency=0)
    if mode == "RGB":
        return _encoded(Image.new("RGB", (5, 5)), transparency=(0, 0, 0))
    return _encoded(Image.new(mode, (5, 5)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "RGB"])
def test_transparency_of_every_kind_lies_on_white(mode: str) -> None:
    tiles = cut(open_image(_transparent(mode)), tile_size=96, max_tiles=4)
    assert tiles.pixels.unique().tolist() == [1]


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_keeps_its_shades(kind: str) -> None:
    image = Image.new("I;16", (3, 1))
    for x, value in enumerate((0, 0x8000, 0xFFFF)):
        image.putpixel((x, 0), value)
    assert [open_image(_encoded(image, kind)).getpixel((x, 0)) for x in range(3)] == [0, 128, 255]


def test_a_picture_of_1_by_5000_pixels_is_read() -> None:
    assert open_image(_encoded(Image.new("RGB", (1, 5000)))).size == (1, 5000)
    with pytest.raises(PromptError, match="0 x 3"):
        open_image(Image.new("RGB", (0, 3)))
