"""Serves a page on this machine alone: one address with a secret, and nothing of the disk."""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
from collections.abc import Callable
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import parse_qs

import gradio as gr
import uvicorn
from fastapi import FastAPI

HOST, COOKIE, LARGEST = "127.0.0.1", "depthg-token", 200 * 2**20  # bytes of an upload


class OnlyWithToken:
    """ASGI middleware: every request needs the token, in its address or in the cookie that this sets.

    Requests to other host names are refused too: a page elsewhere could have its name point to this machine.
    """

    def __init__(self, app: Callable, token: str):
        self.app, self.token = app, token

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get(b"host", "").rpartition(":")[0] or headers.get(b"host", "")
        query = parse_qs(scope.get("query_string", b"").decode("latin-1")).get("token", [""])[0]
        cookie = SimpleCookie(headers.get(b"cookie", "")).get(COOKIE)
        known = [self._equal(query), self._equal(cookie.value if cookie else "")]
        if host not in (HOST, "localhost") or not any(known):
            await _refuse(scope, send)
        elif known[0] and not known[1] and scope["type"] == "http":
            await self._welcome(scope, send)
        else:
            await self.app(scope, receive, send)

    def _equal(self, given: str) -> bool:
        return secrets.compare_digest(given.encode(), self.token.encode())

    async def _welcome(self, scope: dict, send: Callable) -> None:
        """Keeps the token in a cookie, and takes it out of the address."""
        cookie = f"{COOKIE}={self.token}; HttpOnly; SameSite=Strict; Path=/"
        headers = [(b"location", b"/"), (b"set-cookie", cookie.encode()), (b"referrer-policy", b"no-referrer")]
        await send({"type": "http.response.start", "status": 303, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


async def _refuse(scope: dict, send: Callable) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
        return
    headers = [(b"content-type", b"text/plain")]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": b"open the address that depthg.label printed, with its token\n"})


def application(blocks: gr.Blocks, css: str, token: str, largest: int = LARGEST) -> Any:
    """The ASGI application: the page behind its token. Files of the disk are not served, whatever their path."""
    inner = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app = gr.mount_gradio_app(
        inner, blocks, path="/", server_name=HOST, allowed_paths=[], max_file_size=largest, show_error=False, css=css,
        footer_links=[], ssr_mode=False, enable_monitoring=False, mcp_server=False,
    )  # fmt: skip
    return OnlyWithToken(app, token)


def serve(build: Callable[[], gr.Blocks], css: str, port: int, ready: Callable[[str], None]) -> None:
    """Serves until it is stopped. Uploads lie in a temporary folder that is removed then.

    Args:
        build: makes the page.
        port: 0: any that is free.
        ready: gets the address to open.

    Raises:
        OSError: the port is taken.
    """
    with tempfile.TemporaryDirectory(prefix="depthg-label-") as folder, socket.socket() as listener:
        os.environ["GRADIO_TEMP_DIR"] = folder
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
            listener.listen()  # whoever follows the address at once waits instead of being refused
        except OSError as error:
            raise OSError(error.errno, f"port {port} cannot be used ({error.strerror}); give another --port") from error
        token = secrets.token_urlsafe(24)
        app = application(build(), css, token)
        ready(f"http://{HOST}:{listener.getsockname()[1]}/?token={token}")
        uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False)).run(sockets=[listener])
