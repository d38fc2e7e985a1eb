"""TGI's generation from raw prompts, whole and streamed, and the two routes that choose by the body's fields."""

import codecs

from serve_app import __version__
from serve_app.dialects.markdown_images import require_short_texts, split_images, with_images
from serve_app.dialects.openai.chat import create_chat_completion
from serve_app.dialects.openai.completions import create_completion
from serve_app.dialects.sampling_body import MAX_ANSWERS, MAX_STOP_STRINGS
from serve_app.dialects.tgi.answer import TGI_NAMES, AnswerStyle, TokenEvents, answer_json
from serve_app.dialects.tgi.body import GenerateBody
from serve_app.dialects.tgi.hub_images import answer_question, caption_body, caption_file, is_image, is_question
from serve_app.dialects.tgi.model import choose_model, model_outside_body
from serve_app.errors import InvalidRequest
from serve_app.exchange.exchange import Exchange
from serve_app.exchange.off_loop import off_loop
from serve_app.exchange.validation import parse_object
from serve_app.images.gate import ImageUrl
from serve_app.messages import GenerationRequest, Message, RawPrompt
from serve_app.models.entry import ModelEntry

_NO_LIMIT = 2**31 - 1  # of a model that states no context length


async def generate(exchange: Exchange) -> None:
    """The whole answer."""
    body = await exchange.read_json(GenerateBody)
    if body.stream:
        raise InvalidRequest("stream: this route answers at once: use /generate_stream, or POST /", "stream")
    await _generate(exchange, body)


async def generate_stream(exchange: Exchange) -> None:
    """An event a token."""
    body = await exchange.read_json(GenerateBody)
    if body.stream is False:
        raise InvalidRequest("stream: this route streams: use /generate, or POST /", "stream")
    await _generate_stream(exchange, body)


async def generate_either(exchange: Exchange) -> None:
    """As the hub's hosted API has it: `stream` decides, and the whole answer is a list of one.

    By default the text of a model without images begins with its prompt, as TGI does it here. An image without a
    prompt is captioned, and a question about one answered.
    """
    data = await exchange.read_body()
    if _is_file(exchange, data):
        await caption_file(exchange, data)
        return
    exchange.require_json()
    values = await off_loop(len(data), parse_object, data)
    if is_question(values):
        await answer_question(exchange, values)
    elif await off_loop(len(data), is_image, values):
        await caption_body(exchange, values)
    elif (body := await exchange.validated(values, GenerateBody)).stream:
        await _generate_stream(exchange, body, is_hosted=True)
    else:
        await _generate(exchange, body, is_hosted=True)


async def invocations(exchange: Exchange) -> None:
    """SageMaker's one route: the body's fields decide whose it is."""
    data = await exchange.read_body()
    try:
        fields = set(await off_loop(len(data), parse_object, data))
    except InvalidRequest:
        fields = set()  # a file; or broken JSON, which `generate_either` refuses
    if "messages" in fields:
        await create_chat_completion(exchange, model_outside_body(exchange))
    elif "prompt" in fields:
        await create_completion(exchange, model_outside_body(exchange))
    else:
        await generate_either(exchange)


async def info(exchange: Exchange) -> None:
    """The model, and the limits of its requests."""
    model = choose_model(exchange)
    context_length = model.description.context_length if model.description else None
    await exchange.send_json(
        {
            "model_id": model.name,
            "model_sha": None,
            "model_pipeline_tag": "image-text-to-text" if model.may_take_images else "text-generation",
            "max_concurrent_requests": exchange.lane.config.admission.max_waiting_requests,
            "max_best_of": MAX_ANSWERS,
            "max_stop_sequences": MAX_STOP_STRINGS,
            "max_input_tokens": (context_length or _NO_LIMIT) - 1,
            "max_total_tokens": context_length or _NO_LIMIT,
            "validation_workers": 1,
            "max_client_batch_size": 1,
            "router": "serve_app",
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }
    )


def _is_file(exchange: Exchange, data: bytes) -> bool:
    """Judged by its type; by its first byte if the type says neither, as with curl and the hub's clients."""
    content_type = exchange.request.headers.get("content-type", "").lower()
    first = data.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
    return content_type.startswith("image/") or ("json" not in content_type and first not in (b"{", b""))


async def _generate(exchange: Exchange, body: GenerateBody, *, is_hosted: bool = False) -> None:
    """The whole answer; if `is_hosted`, in the shape of `POST /`."""
    body = body.seeded()
    model = choose_model(exchange, body.model, body.parameters.adapter_id)
    style = _style(body, model, is_hosted)
    request = await _request(exchange, body, model, has_token_details=style.has_details)
    await exchange.count_answers(request.sampling.num_answers)
    chunks = await exchange.answer(request, TGI_NAMES)
    answer = answer_json(chunks, style)
    counts = {
        "x-compute-characters": str(len(body.inputs)),
        "x-prompt-tokens": str(chunks[0].num_prompt_tokens),
        "x-generated-tokens": str(sum(chunk.num_tokens for chunk in chunks)),
    }
    await exchange.send_json([answer] if is_hosted else answer, headers=counts)


async def _generate_stream(exchange: Exchange, body: GenerateBody, *, is_hosted: bool = False) -> None:
    model = choose_model(exchange, body.model, body.parameters.adapter_id)
    if body.parameters.num_answers > 1:
        raise InvalidRequest("parameters.best_of: one answer is streamed: leave it out", "parameters.best_of")
    if body.parameters.decoder_input_details:
        field = "parameters.decoder_input_details"
        raise InvalidRequest(f"{field}: a stream has none, as in TGI: leave it out", field)
    body = body.seeded()
    request = await _request(exchange, body, model, has_token_details=True)
    await exchange.send_stream(request, TokenEvents(_style(body, model, is_hosted)), TGI_NAMES)


def _style(body: GenerateBody, model: ModelEntry, is_hosted: bool) -> AnswerStyle:
    parameters = body.parameters
    is_full_text = parameters.return_full_text
    if is_full_text is None:
        is_full_text = is_hosted and not model.may_take_images
    return AnswerStyle(body.inputs if is_full_text else "", parameters.has_details, parameters.seed)


async def _request(
    exchange: Exchange, body: GenerateBody, model: ModelEntry, *, has_token_details: bool
) -> GenerationRequest:
    """The prompt, its images loaded. A model that reads text only reads markdown as text, as in TGI."""
    parameters = body.parameters
    pieces: list[str | ImageUrl] = [body.inputs]
    if model.may_take_images:
        pieces = await off_loop(len(body.inputs), split_images, body.inputs, "inputs")
    require_short_texts(pieces, "inputs")
    sources = [piece for piece in pieces if isinstance(piece, ImageUrl)]
    if sources and parameters.truncate:
        raise InvalidRequest("parameters.truncate: a prompt with images can't be cut: leave it out", "parameters")
    images = await exchange.load_images(model, sources, ["inputs"] * len(sources), "inputs")
    return exchange.generation(
        model,
        (Message("user", with_images(pieces, iter(images))),),
        parameters.sampling(has_token_details=has_token_details),
        raw=RawPrompt(last_tokens=parameters.truncate),
    )
