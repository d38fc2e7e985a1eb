"""`serve-app chat`: one question, a pipe, or a conversation in the terminal, token by token."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from serve_app.cli.errors import USAGE, CliError
from serve_app.cli.options import DEFAULT_URL, ApiKey, Url
from serve_app.client.errors import ServiceError

if TYPE_CHECKING:
    from serve_app.cli.conversation import Conversation

HELP = """/image PATH_OR_URL  show the model an image with your next message
/model NAME           ask another model
/new                  begin a new conversation
/help                 this list
Ctrl-C stops an answer, Ctrl-D ends."""


def chat(
    message: Annotated[str | None, typer.Argument(help="Left out: a conversation, or standard input.")] = None,
    url: Url = DEFAULT_URL,
    api_key: ApiKey = None,
    model: Annotated[str | None, typer.Option(help="Which model. Left out: the service's first one.")] = None,
    system: Annotated[str | None, typer.Option(help="Instructions ahead of the conversation.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="The longest answer, in tokens.")] = None,
    temperature: Annotated[float | None, typer.Option(min=0, max=2, help="0 takes the likeliest.")] = None,
    image: Annotated[
        list[str] | None, typer.Option("--image", metavar="FILE|URL", help="An image to talk about; repeat.")
    ] = None,
) -> None:
    """Chat with a model; its answer appears as it is written.

    \b
    serve-app chat "What is a monad?"
    serve-app chat --image cat.jpg "What breed is this?"
    git diff | serve-app chat --system "Review this change."
    serve-app chat
    """
    from serve_app.cli.conversation import Conversation
    from serve_app.client.api import ApiClient

    fields = {"model": model, "max_tokens": max_tokens, "temperature": temperature}
    with Conversation(ApiClient(url, api_key), system, fields) as conversation:
        for source in image or []:
            conversation.add_image(source)
        if message is None and sys.stdin.isatty():
            _converse(conversation)
            return
        if message is None:
            message = sys.stdin.buffer.read().decode("utf-8", "replace").strip()
        if not message:
            raise CliError("There is no message: write one behind `serve-app chat`, or pipe one in", USAGE)
        conversation.ask(message)


def _converse(conversation: "Conversation") -> None:
    import readline  # noqa: F401 -- gives `input` its editing and history

    print("Type a message; /help lists commands.", file=sys.stderr)
    while True:
        try:
            line = input("> ").strip()
        except EOFError:
            print()
            return
        except KeyboardInterrupt:
            print("\n(Ctrl-D ends)", file=sys.stderr)
            continue
        try:
            _obey(conversation, line)
        except (CliError, ServiceError) as error:
            print(error.message, file=sys.stderr)
        except KeyboardInterrupt:
            print("\n(stopped)", file=sys.stderr)


def _obey(conversation: "Conversation", line: str) -> None:
    """Do what one line of the conversation says."""
    if not line.startswith("/"):
        if line:
            conversation.ask(line)
        return
    command, _, value = line.partition(" ")
    value = value.strip()
    if command == "/new":
        conversation.begin_anew()
    elif command == "/image" and value:
        conversation.add_image(value)
    elif command == "/model" and value:
        conversation.fields["model"] = value
    elif command == "/help":
        print(HELP, file=sys.stderr)
    else:
        raise CliError(f"{command} needs something else:\n{HELP}", USAGE)
