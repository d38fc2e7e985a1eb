"""What a caption request asks for, from both of its encodings: JSON, and a multipart form with uploaded images."""

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, model_validator
from starlette.datastructures import FormData, UploadFile

from serve_app.config.http import MAX_IMAGES
from serve_app.dialects.captions.fields import CaptionFields
from serve_app.errors import InvalidRequest
from serve_app.exchange import json_text
from serve_app.exchange.body import Body, shortened, wrong
from serve_app.exchange.exchange import Exchange
from serve_app.exchange.validation import validate
from serve_app.images.gate import ImageBase64, ImageBytes, ImageSource, ImageUrl, source_from_text

_LISTS = ("stop", "options")  # fields that a form may have more than once
_DOCUMENTS = ("format", "guard")  # fields that a form may say in JSON
_LONGEST_NUMBER = 10  # digits


class ImageObject(Body):
    """An image by exactly one of its address (http, https or data) and its base64 bytes."""

    url: str | None = None
    b64: str | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "ImageObject":
        if (self.url is None) == (self.b64 is None):
            raise ValueError("give exactly one of 'url' and 'b64'")
        return self

    def source(self) -> ImageSource:
        return ImageUrl(self.url) if self.url is not None else ImageBase64(self.b64 or "")


def _object_from_text(value: Any) -> Any:
    """A bare string is an address if it has a scheme, base64 otherwise."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, str):
        raise ValueError('send an address, a data URI or base64, or {"url": …} or {"b64": …}')
    return {"url" if isinstance(source_from_text(value), ImageUrl) else "b64": value}


Image = Annotated[ImageObject, BeforeValidator(_object_from_text, json_schema_input_type=ImageObject | str)]


class CaptionBody(CaptionFields):
    """The body of `POST /v1/captions`."""

    image: Image | None = None
    images: Annotated[list[Image], Field(fail_fast=True)] | None = Field(None, min_length=1, max_length=MAX_IMAGES)

    @model_validator(mode="after")
    def _image_or_images(self) -> "CaptionBody":
        if (self.image is None) == (self.images is None):
            raise wrong("image", "send exactly one of 'image' (one image) and 'images' (a list)")
        return self


class CaptionForm(CaptionFields):
    """The multipart form's fields beside the uploaded `image` files."""


@dataclass(frozen=True, slots=True)
class CaptionRequest:
    """What both encodings of the request come to; `params` name each image in the client's spelling."""

    fields: CaptionFields
    sources: list[ImageSource]
    params: list[str]


async def read_caption_request(exchange: Exchange, max_images: int) -> CaptionRequest:
    """Raises `InvalidRequest` and what `Exchange` raises. A few images above `max_images` are let in."""
    content_type = exchange.request.headers.get("content-type", "").lower()
    if content_type.startswith("multipart/form-data"):
        return await _read_form(exchange, max_images)
    body = await exchange.read_json(CaptionBody)
    if body.images is not None:
        images, params = body.images, [f"images[{i}]" for i in range(len(body.images))]
    else:
        assert body.image is not None, "validated above"
        images, params = [body.image], ["image"]
    return CaptionRequest(body, [image.source() for image in images], params)


async def _read_form(exchange: Exchange, max_images: int) -> CaptionRequest:
    # Files above the limit are let in, so that the error is ours and says how many came.
    form = await exchange.read_form(max_files=max_images * 8)
    try:
        sources: list[ImageSource] = [ImageBytes(await upload.read()) for upload in _uploads(form)]
    finally:
        await form.close()
    params = [f"image[{i}]" for i in range(len(sources))] if len(sources) > 1 else ["image"]
    return CaptionRequest(validate(_fields(form), CaptionForm, strict=False), sources, params)


def _uploads(form: FormData) -> list[UploadFile]:
    """The images. Raises `InvalidRequest` where there is none, or a file in another field."""
    uploads = []
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            if name != "image":
                name = shortened(name)
                raise InvalidRequest(f"{name}: this field takes no file: images are files named 'image'", name)
            uploads.append(value)
    if not uploads:
        raise InvalidRequest("image: no file was uploaded: send the image as a form file 'image'", "image")
    return uploads


def _fields(form: FormData) -> dict[str, Any]:
    """The form's values. Raises `InvalidRequest` where one comes twice, unless it is a list's."""
    fields: dict[str, Any] = {}
    for name, value in form.multi_items():
        if isinstance(value, UploadFile):
            continue
        if name in _LISTS:
            fields.setdefault(name, []).append(value)
        elif name in fields:
            name = shortened(name)
            raise InvalidRequest(f"{name}: the form has it twice: send it once", name)
        else:
            fields[name] = _from_text(name, value)
    return fields


def _from_text(name: str, value: str) -> Any:
    """A form has texts only: a number of words, and what JSON says by an object, a list or a truth value."""
    if name == "length" and value.isascii() and value.isdigit() and len(value) < _LONGEST_NUMBER:
        return int(value)
    if name in _DOCUMENTS and value.lstrip().startswith(("{", "true", "false")):
        return json_text.parse(value.encode(errors="replace"), name)
    return value
