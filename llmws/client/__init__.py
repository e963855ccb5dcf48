"""The async Python client: one session, exactly-once answers, over connections that may break.

async with Client("http://127.0.0.1:8765", token) as client:
    async for event in client.generate("Why is the sky blue?"):
        if isinstance(event, Token):
            print(event.data, end="", flush=True)
    answer = await client.generate("And at night?", temperature=0)
    print(answer.text, answer.node_id, answer.model, answer.tokens_generated)
"""

from llmws.client.answer import AnswerEvent, Completion, Reset
from llmws.client.backoff import Backoff
from llmws.client.client import Client, ReadableTokenWarning
from llmws.client.connection import Collectable, Connected, Disconnected, Notice
from llmws.client.discovery import LocalServer, local_server, local_servers
from llmws.client.errors import (
    CertificateError,
    ClientError,
    ClosedError,
    ForbiddenError,
    GenerationError,
    IntegrityError,
    NoReplyError,
    ProtocolError,
    RequestRejectedError,
    ServerFaultError,
    SessionLostError,
    TakenOverError,
    UnauthorizedError,
    UnreachableError,
    WithdrawnError,
)
from llmws.client.generation import Generation
from llmws.client.images import image, image_file
from llmws.client.tls import trusting
from llmws.client.tree import branch, question
from llmws.protocol.messages import Done, Image, Log, Position, Queue, Start, Token

__all__ = [
    "AnswerEvent",
    "Backoff",
    "CertificateError",
    "Client",
    "ClientError",
    "ClosedError",
    "Collectable",
    "Completion",
    "Connected",
    "Disconnected",
    "Done",
    "ForbiddenError",
    "Generation",
    "GenerationError",
    "Image",
    "IntegrityError",
    "LocalServer",
    "Log",
    "NoReplyError",
    "Notice",
    "Position",
    "ProtocolError",
    "Queue",
    "ReadableTokenWarning",
    "RequestRejectedError",
    "Reset",
    "ServerFaultError",
    "SessionLostError",
    "Start",
    "TakenOverError",
    "Token",
    "UnauthorizedError",
    "UnreachableError",
    "WithdrawnError",
    "branch",
    "image",
    "image_file",
    "local_server",
    "local_servers",
    "question",
    "trusting",
]
