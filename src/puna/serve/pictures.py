"""Pictures in messages, looked at before they are decoded: where they come from, how many, bytes, format and pixels.

In: messages as JSON. Out: the same with pictures that are opened, checked and not decoded yet; or a Refusal.
Not here: decoding (`prompt/message`), getting pictures from elsewhere (`fetch`).
"""

import base64
import binascii
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any

from PIL import Image

from puna.serve.limits import Limits
from puna.serve.refusal import Refusal, require

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF")
"""What a server decodes: the formats of the web. The others that Pillow knows are read from one's own disk only."""

Fetch = Callable[[str, str], bytes]
"""Takes an address and what errors call it; returns the bytes behind it."""


def refuse_fetching(url: str, where: str) -> bytes:
    """Raises a 400: a server that was not told otherwise asks nobody."""
    problem = "is no data URL; nothing else is fetched here: send data:image/png;base64,..."
    raise Refusal(400, f"{where}: {problem}", param=where)


def with_pictures(
    documents: Sequence[dict[str, Any]], limits: Limits, fetch: Fetch = refuse_fetching
) -> list[dict[str, Any]]:
    """Returns messages whose URLs became pictures. Raises Refusal."""
    contents = [document.get("content") for document in documents]
    parts = [part for content in contents if isinstance(content, list) for part in content]
    n_images = sum(_is_picture(part) for part in parts)
    require(
        n_images <= limits.max_images, "messages", f"holds {n_images} images: at most {limits.max_images} are read here"
    )
    return [_message(document, f"messages[{i}]", limits, fetch) for i, document in enumerate(documents)]


def addresses(documents: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Returns the pictures in messages that lie elsewhere: what errors call them, by their address."""
    found: dict[str, str] = {}
    for i, document in enumerate(documents):
        content = document.get("content")
        for j, part in enumerate(content if isinstance(content, list) else ()):
            if _is_picture(part) and isinstance(url := _url(part), str) and not _is_inline(url):
                found.setdefault(url, f"messages[{i}].content[{j}].{part['type']}")
    return found


def _url(part: Any) -> Any:
    link = part.get(part["type"])
    return link.get("url") if isinstance(link, dict) else link


def _is_picture(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in ("image", "image_url")


def _message(document: dict[str, Any], where: str, limits: Limits, fetch: Fetch) -> dict[str, Any]:
    content = document.get("content")
    if not isinstance(content, list):
        return document
    parts = [_part(part, f"{where}.content[{i}]", limits, fetch) for i, part in enumerate(content)]
    return document | {"content": parts}


def _part(part: Any, where: str, limits: Limits, fetch: Fetch) -> Any:
    if not _is_picture(part):
        return part
    kind = part["type"]
    link, url = part.get(kind), _url(part)
    others = [key for key in part if key not in ("type", kind)]
    others += [key for key in (link if isinstance(link, dict) else ()) if key not in ("url", "detail")]
    require(not others, where, f"has the unknown field {others[:1]}: leave it out")
    return {"type": "image", "image": _open(url, f"{where}.{kind}", limits, fetch)}


def _open(url: object, where: str, limits: Limits, fetch: Fetch) -> Image.Image:
    data = _inline(url, where, limits) if _is_inline(url) else fetch(url if isinstance(url, str) else "", where)
    try:
        image = Image.open(BytesIO(data), formats=IMAGE_FORMATS)
    except Exception as error:  # decoders raise whatever they stumble over in a damaged file
        formats = ", ".join(IMAGE_FORMATS)
        raise Refusal(400, f"{where} is not an image that can be read: send one of {formats}", param=where) from error
    n_pixels = image.width * image.height
    require(n_pixels <= limits.max_image_pixels, where, f"has {n_pixels} pixels: at most {limits.max_image_pixels}")
    return image


def _is_inline(url: object) -> bool:
    return isinstance(url, str) and url[:5].lower() == "data:"


def _inline(url: Any, where: str, limits: Limits) -> bytes:
    head, _, body = url.partition(",")
    require(head.endswith(";base64"), where, "is not in base64: send data:image/png;base64,...")
    require(len(body) * 3 // 4 <= limits.max_image_bytes, where, f"has more than {limits.max_image_bytes} bytes")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError) as error:
        raise Refusal(400, f"{where} is not valid base64: encode the file again", param=where) from error
