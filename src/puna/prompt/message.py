"""The nouns of a conversation: messages made of text and pictures, tool calls, tool definitions.

In: dictionaries in the shape of OpenAI's chat API, or these values built by hand. Out: frozen values that `render`
turns into a prompt and `parse` makes from a finished reply. Not here: special tokens, tiles, fetching from a network.

`open_image` is the one decoder of pictures: training, evaluation and chat use it, so they all see the same pixels.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

from PIL import Image, ImageOps

from puna.errors import PromptError

Role = Literal["system", "user", "assistant", "tool"]
ROLES: tuple[Role, ...] = ("system", "user", "assistant", "tool")

MAX_PIXELS = 80_000_000
"""Largest picture that is decoded; beyond it a small file could fill the memory. Just below Pillow's own warning."""

MAX_DEPTH = 64
"""Deepest nesting of the arguments of a tool call, far from the interpreter's recursion limit."""

NAME = r"[\w.:/-]+"
"""How tools are named, as a regular expression: letters, digits and marks that cannot end a name inside a call."""

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "ICO", "AVIF")
"""What `open_image` decodes where Pillow can. EPS, which starts another program, and vector drawings stay out."""

_SIXTEEN_BIT = ("I;16", "I;16B", "I;16L", "I;16N")


@dataclass(frozen=True, slots=True)
class TextPart:
    """A piece of text. Pieces are encoded one by one, so a border between two is also a border between tokens."""

    text: str

    def __post_init__(self) -> None:
        _require(isinstance(self.text, str), "text", f"is {_kind(self.text)}; give a string")


@dataclass(frozen=True, slots=True)
class ImagePart:
    """A picture, decoded. Its pixels are taken as they are: make it with `open_image` to have it upright."""

    image: Image.Image

    def __post_init__(self) -> None:
        _require(isinstance(self.image, Image.Image), "image", f"is {_kind(self.image)}; give a PIL image")


Part = TextPart | ImagePart


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model asks for. `arguments` holds JSON values: str, int, finite float, bool, None, list, dict."""

    name: str
    arguments: dict[str, object]
    id: str | None = None

    def __post_init__(self) -> None:
        _require_name(self.name, "tool call name")
        _require(isinstance(self.arguments, dict), "arguments", f"is {_kind(self.arguments)}; give a dictionary")
        _check_json(self.arguments, f"arguments of {self.name}", MAX_DEPTH)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], *, where: str = "tool call") -> "ToolCall":
        """Reads `{"id", "type": "function", "function": {"name", "arguments"}}`; arguments may be JSON text.

        What OpenAI's client adds to answers that it has parsed, "parsed_arguments", is dropped.
        """
        document = _mapping(document, where)
        _keys(document, where, {"id", "type", "index", "function"})
        _require_function(document, where)
        function = _mapping(document.get("function"), f"{where}.function")
        _keys(function, f"{where}.function", {"name", "arguments", "parsed_arguments"})
        arguments = function.get("arguments")
        if isinstance(arguments, str):
            arguments = _json_object(arguments or "{}", f"{where}.function.arguments")
        arguments = dict(_mapping({} if arguments is None else arguments, f"{where}.function.arguments"))
        name = _text(function.get("name"), f"{where}.function.name")
        return cls(name=name, arguments=arguments, id=_optional_text(document.get("id"), f"{where}.id"))

    def to_dict(self) -> dict[str, Any]:
        """Returns what `from_dict` reads, arguments as JSON text; a call without id has no "id"."""
        function = {"name": self.name, "arguments": json.dumps(self.arguments)}
        return ({} if self.id is None else {"id": self.id}) | {"type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class Message:
    """One turn. Only an assistant has `tool_calls`; only a tool has `call_id`, the id of the call that it answers."""

    role: Role
    content: tuple[Part, ...]
    tool_calls: tuple[ToolCall, ...] = ()
    call_id: str | None = None

    def __post_init__(self) -> None:
        _require(self.role in ROLES, "role", f"is {self.role!r}; expected one of {', '.join(ROLES)}")
        parts = isinstance(self.content, tuple) and all(isinstance(part, TextPart | ImagePart) for part in self.content)
        _require(parts, "content", "must be a tuple of TextPart and ImagePart")
        calls = isinstance(self.tool_calls, tuple) and all(isinstance(call, ToolCall) for call in self.tool_calls)
        _require(calls, "tool_calls", "must be a tuple of ToolCall")
        _require(
            not self.tool_calls or self.role == "assistant", "tool_calls", f"belongs to an assistant, not a {self.role}"
        )
        _require(self.call_id is None or self.role == "tool", "tool_call_id", f"belongs to a tool, not a {self.role}")

    @property
    def text(self) -> str:
        """The text parts, joined without anything between them."""
        return "".join(part.text for part in self.content if isinstance(part, TextPart))

    @property
    def images(self) -> tuple[Image.Image, ...]:
        return tuple(part.image for part in self.content if isinstance(part, ImagePart))

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], *, where: str = "message", paths: bool = True) -> "Message":
        """Reads a message in OpenAI's shape; `where` is what errors call it.

        `content` is a string, None, or a list of `{"type": "text", "text"}`, `{"type": "image", "image"}` (a PIL image,
        path, data URL or bytes) and `{"type": "image_url", "image_url": {"url"}}` (data URL or path). With `paths`
        False nothing is read from this machine's disk, which is what a server wants. "developer" is read as system;
        the "name" of a tool's result is dropped, since the prompt has no place for it, and "parsed", which OpenAI's
        client adds to answers.

        Raises PromptError for anything else: an unknown key that is not empty, a broken picture, a wrong type.
        """
        document = _mapping(document, where)
        role = _role(document.get("role"), f"{where}.role")
        known = {"role", "content", "tool_calls", "tool_call_id"}
        _keys(document, where, known | {"tool": {"name"}, "assistant": {"parsed"}}.get(role, set()))
        content = _content(document.get("content"), f"{where}.content", paths)
        calls = _calls(document.get("tool_calls") or (), f"{where}.tool_calls")
        call_id = _optional_text(document.get("tool_call_id"), f"{where}.tool_call_id")
        try:
            return cls(role=role, content=content, tool_calls=calls, call_id=call_id)
        except PromptError as error:
            raise PromptError(f"{where}.{error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Returns what `from_dict` reads. Pictures become PNG data URLs."""
        document: dict[str, Any] = {"role": self.role, "content": _plain_content(self.content)}
        if self.tool_calls:
            document["tool_calls"] = [call.to_dict() for call in self.tool_calls]
        if self.call_id is not None:
            document["tool_call_id"] = self.call_id
        return document


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. `parameters` is a JSON schema of an object, or empty.

    Calls of a `strict` tool follow its schema to the letter; the model is not told.
    """

    name: str
    description: str
    parameters: dict[str, Any]
    strict: bool = False

    def __post_init__(self) -> None:
        _require_name(self.name, "tool name")
        _require(isinstance(self.description, str), "tool description", f"is {_kind(self.description)}; give a string")
        _require(
            isinstance(self.parameters, dict), "tool parameters", f"is {_kind(self.parameters)}; give a JSON schema"
        )
        _check_json(self.parameters, f"parameters of {self.name}", MAX_DEPTH)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any], *, where: str = "tool") -> "Tool":
        """Reads OpenAI's `{"type": "function", "function": {...}}` or only what stands within."""
        document = _mapping(document, where)
        if "function" in document:
            _keys(document, where, {"type", "function"})
            _require_function(document, where)
            where, document = f"{where}.function", _mapping(document["function"], f"{where}.function")
            _keys(document, where, {"name", "description", "parameters", "strict"})
        else:
            _keys(document, where, {"type", "name", "description", "parameters", "strict"})
        name = _text(document.get("name"), f"{where}.name")
        description = _optional_text(document.get("description"), f"{where}.description") or ""
        parameters = dict(_mapping(document.get("parameters") or {}, f"{where}.parameters"))
        strict = document.get("strict") or False
        _require(isinstance(strict, bool), f"{where}.strict", f"is {_kind(strict)}; give true or false")
        return cls(name=name, description=description, parameters=parameters, strict=strict)

    def to_dict(self) -> dict[str, Any]:
        """Returns OpenAI's form."""
        function = {"name": self.name, "description": self.description, "parameters": self.parameters}
        return {"type": "function", "function": function}


# Pictures ---------------------------------------------------------------------------------------------------------


def open_image(source: object, *, where: str = "image", paths: bool = True) -> Image.Image:
    """Returns the picture in `source` (PIL image, bytes, data URL, or a path if `paths`), decoded, as people see it.

    EXIF rotation is applied, transparency of every kind becomes RGBA (which `tiles` lays on white), 16-bit grey becomes
    8-bit, and only the first frame of an animation counts. Meta's code does none of the first three; an upright RGB,
    RGBA, grey, palette or CMYK picture gives the same pixels in both.

    Raises PromptError, named `where`, when the picture is not one, is damaged, or has more than MAX_PIXELS.
    """
    image = source if isinstance(source, Image.Image) else _decode(_image_bytes(source, where, paths), where)
    _check_size(image, where)
    try:
        if getattr(image, "is_animated", False):
            image.seek(0)
        image.load()
        return _eight_bit(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders raise whatever they stumble over in a damaged file
        raise PromptError(f"{where}: the image is damaged or incomplete ({error}); save it again as PNG") from error


def _eight_bit(image: Image.Image) -> Image.Image:
    if image.mode in _SIXTEEN_BIT:
        return image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
    if image.mode != "RGBA" and image.has_transparency_data:
        return image.convert("RGBA")
    return image


def _image_bytes(source: object, where: str, paths: bool) -> bytes:
    if isinstance(source, bytes | bytearray | memoryview):
        return bytes(source)
    if isinstance(source, str) and source.startswith("data:"):
        return _data_url(source, where)
    if isinstance(source, str) and source.startswith(("http://", "https://")):
        raise PromptError(f"{where}: {source[:80]} is not fetched here; download it and send the file as a data URL")
    if not isinstance(source, str | Path):
        raise PromptError(f"{where}: is {_kind(source)}; give a PIL image, a path, a data URL or bytes")
    if not paths:
        raise PromptError(f"{where}: reading files of this machine is not allowed; send the image as a data URL")
    try:
        return Path(source).read_bytes()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise PromptError(f"{where}: cannot read {str(source)[:80]!r}: {reason}; check the path") from error


def _data_url(url: str, where: str) -> bytes:
    """Returns the bytes of a data URL, in base64 or percent-encoded. Source: RFC 2397."""
    head, comma, body = url.partition(",")
    if not comma:
        raise PromptError(f"{where}: the data URL has no comma; expected data:image/png;base64,...")
    try:
        return base64.b64decode(body, validate=True) if head.endswith(";base64") else unquote_to_bytes(body)
    except (binascii.Error, ValueError) as error:
        raise PromptError(f"{where}: the data URL is not valid base64 ({error}); encode the file again") from error


def _decode(data: bytes, where: str) -> Image.Image:
    Image.init()
    formats = [name for name in IMAGE_FORMATS if name in Image.OPEN]
    try:
        return Image.open(BytesIO(data), formats=formats)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise PromptError(f"{where}: the image has more than {MAX_PIXELS} pixels; make it smaller") from error
    except Exception as error:  # as in `open_image`
        raise PromptError(f"{where}: not an image in one of the formats {', '.join(formats)}") from error


def _check_size(image: Image.Image, where: str) -> None:
    if not 0 < image.width * image.height <= MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        raise PromptError(f"{where}: the image has {size} pixels, allowed are 1 to {MAX_PIXELS}; change its size")


# Content ----------------------------------------------------------------------------------------------------------


def _role(role: object, where: str) -> Role:
    for known in ROLES:
        if role == known:
            return known
    if role == "developer":
        return "system"
    raise PromptError(f"{where}: is {role!r}; expected one of {', '.join(ROLES)}")


def _calls(calls: object, where: str) -> tuple[ToolCall, ...]:
    if not isinstance(calls, Sequence) or isinstance(calls, str | bytes):
        raise PromptError(f"{where}: is {_kind(calls)}; give a list")
    return tuple(ToolCall.from_dict(call, where=f"{where}[{i}]") for i, call in enumerate(calls))


def _content(content: object, where: str, paths: bool) -> tuple[Part, ...]:
    if content is None or content == "":
        return ()
    if isinstance(content, str):
        return (TextPart(content),)
    if not isinstance(content, Sequence):
        raise PromptError(f"{where}: is {_kind(content)}; give a string or a list of parts")
    return tuple(_part(part, f"{where}[{i}]", paths) for i, part in enumerate(content))


def _part(part: object, where: str, paths: bool) -> Part:
    document = _mapping(part, where)
    match document.get("type"):
        case "text":
            _keys(document, where, {"type", "text"})
            return TextPart(_text(document.get("text"), f"{where}.text"))
        case "image":
            _keys(document, where, {"type", "image"})
            return ImagePart(open_image(document.get("image"), where=f"{where}.image", paths=paths))
        case "image_url":
            _keys(document, where, {"type", "image_url"})
            url = _url(document.get("image_url"), f"{where}.image_url")
            return ImagePart(open_image(url, where=f"{where}.image_url.url", paths=paths))
        case kind:
            raise PromptError(f"{where}.type: is {kind!r}; expected 'text', 'image' or 'image_url'")


def _url(link: object, where: str) -> str:
    """Returns the URL of `{"url", "detail"}` or of a string. `detail` changes nothing: the size decides the tiles."""
    if isinstance(link, Mapping):
        _keys(link, where, {"url", "detail"})
        link = link.get("url")
    return _text(link, f"{where}.url")


def _plain_content(content: tuple[Part, ...]) -> str | list[dict[str, Any]] | None:
    match content:
        case ():
            return None
        case (TextPart(text),) if text:
            return text
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, TextPart)
        else {"type": "image_url", "image_url": {"url": _png_url(part.image)}}
        for part in content
    ]


def _png_url(image: Image.Image) -> str:
    """Returns a PNG data URL; modes that PNG cannot hold become RGB, or RGBA where there is transparency."""
    if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = image.convert("RGBA" if image.has_transparency_data else "RGB")
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


# Checks -----------------------------------------------------------------------------------------------------------


def _require(condition: bool, field: str, problem: str) -> None:
    if not condition:
        raise PromptError(f"{field}: {problem}")


def _require_name(name: object, field: str) -> None:
    valid = isinstance(name, str) and re.fullmatch(NAME, name) is not None
    _require(valid, field, f"is {name!r}; use letters, digits and _ . : / - only")


def _require_function(document: Mapping[str, Any], where: str) -> None:
    kind = document.get("type", "function")
    _require(kind == "function", f"{where}.type", f"is {kind!r}; only 'function' exists")


def _kind(value: object) -> str:
    return "missing" if value is None else f"of type {type(value).__name__}"


def _mapping(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise PromptError(f"{where}: is {_kind(value)}; give an object")
    return value


def _text(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise PromptError(f"{where}: is {_kind(value)}; give a string")
    return value


def _optional_text(value: object, where: str) -> str | None:
    return None if value is None else _text(value, where)


def _keys(document: Mapping[str, Any], where: str, known: set[str]) -> None:
    """Raises PromptError for a key that would be ignored. Empty values say nothing, so they may stay."""
    for key, value in document.items():
        if key not in known and value not in (None, "", [], {}, False):
            raise PromptError(f"{where}.{key}: is not supported here; leave it out (known: {', '.join(sorted(known))})")


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise PromptError(f"{where}: is not valid JSON ({error}); give a JSON object") from error
    return dict(_mapping(value, where))


def _check_json(value: object, where: str, depth: int) -> None:
    """Raises PromptError unless `value` consists of JSON values nested at most `depth` deep."""
    if depth < 0:
        raise PromptError(f"{where}: are nested deeper than {MAX_DEPTH}; make them flatter")
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise PromptError(f"{where}: key {key!r} is {_kind(key)}; JSON keys are strings")
            _check_json(item, where, depth - 1)
    elif isinstance(value, list):
        for item in value:
            _check_json(item, where, depth - 1)
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise PromptError(f"{where}: {value} is not a JSON number; use a finite one or null")
    elif not (value is None or isinstance(value, str | int)):
        raise PromptError(f"{where}: {value!r} is {_kind(value)}; use JSON values only")
