"""The web server of the labeling page: Starlette on uvicorn, in a thread of the run's process."""

import secrets
import socket
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from http.cookies import SimpleCookie
from pathlib import Path
from threading import Thread
from typing import Any, NamedTuple
from urllib.parse import parse_qs, urlsplit

import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from sslpl.oracle.labeling import Labeling, Record
from sslpl.oracle.page_pictures import MAX_SIDE, picture_file, small_picture
from sslpl.oracle.submissions import Submission

PAGE = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
MAX_BODY = 2**20  # bytes of a request
COOKIE = "sslpl_token"
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
}
Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Send], Awaitable[None]]


def labeling_app(
    labeling: Labeling, file_of: Callable[[int], Path], status: Callable[[], Record], token: str, hosts: set[str] | None
) -> App:
    """Returns the web application of the page, which answers nothing without the token.

    `file_of` returns the file of an image that was asked for, `status` what the page shows of the run. `hosts` are the
    names by which a browser may address the server (against DNS rebinding), None allows any.
    """
    requests = PageRequests(labeling, file_of, status, token)
    routes = [Route(path, requests.static) for path in PAGE]
    routes += [Route(path, requests.image) for path in ("/image/{index:int}", "/small/{index:int}")]
    routes += [
        Route("/api/answers", requests.answers, methods=["POST"]),
        Route("/api/leave", requests.leave, methods=["POST"]),
        Route("/api/review", requests.review),
    ]
    return guarded(Starlette(routes=routes), token, hosts)


class PageRequests(NamedTuple):
    """Answers the requests of the page."""

    labeling: Labeling
    file_of: Callable[[int], Path]
    status: Callable[[], Record]
    token: str

    def static(self, request: Request) -> Response:
        """Sends a file of the page, and the token as a cookie with the first."""
        name, media_type = PAGE[request.url.path]
        response = Response((Path(__file__).parent / name).read_bytes(), media_type=media_type)
        response.headers["Cache-Control"] = "no-cache"
        if request.url.path == "/":
            response.set_cookie(cookie_name(request), self.token, httponly=True, samesite="strict", max_age=30 * 86400)
        return response

    async def answers(self, request: Request) -> Response:
        """Saves the answers of a window, and sends it the images that are next."""
        if not request.headers.get("content-type", "").startswith("application/json"):
            return problem(415, "must be JSON")
        body = await read_body(request)
        if body is None:
            return problem(413, "is too long")
        try:
            submission = Submission.model_validate_json(body)
        except ValidationError as error:
            first = error.errors()[0]
            return problem(422, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")
        try:
            return JSONResponse(await run_in_threadpool(self._save, submission))
        except OSError as error:
            return problem(507, f"the answer could not be saved ({error.strerror or error}); it is sent again")

    def _save(self, submission: Submission) -> Record:
        results = self.labeling.submit(submission) if submission.items else []
        queue = self.labeling.take(submission)  # before the overview, because taking images renews the leases
        return {"results": results, "queue": queue, "overview": self.labeling.overview(), "run": self.status()}

    def leave(self, request: Request) -> Response:
        """Gives the images of a window that is closed to the others."""
        self.labeling.leave(request.query_params.get("tab", ""))
        return Response(status_code=204)

    def review(self, request: Request) -> Response:
        """Sends the answers that a person may look at again."""
        return JSONResponse(self.labeling.review(request.query_params.get("person", "")))

    def image(self, request: Request) -> Response:
        """Sends an image that was asked for, by its position in the pool."""
        index = int(request.path_params["index"])
        if not self.labeling.is_asked(index):
            return problem(404, "was not asked for")
        try:
            is_small = request.url.path.startswith("/small/")
            path, side = self.file_of(index), request.query_params.get("side", "")
            limit = int(side) if side.isdecimal() and 0 < int(side) <= MAX_SIDE else None
            content, media_type = (small_picture(path), "image/jpeg") if is_small else picture_file(path, limit)
        except Exception as error:  # Pillow raises anything for a damaged file
            return problem(404, f"cannot be read ({type(error).__name__})")
        return Response(content, media_type=media_type, headers={"Cache-Control": "private, max-age=3600"})


async def read_body(request: Request) -> bytes | None:
    """Returns the body of a request; None if it has more than MAX_BODY bytes."""
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            return None
    return bytes(body)


def problem(code: int, line: str) -> Response:
    """Returns an error in one line."""
    return JSONResponse({"error": line}, status_code=code)


def cookie_name(request: Request) -> str:
    """Returns the name of the cookie, with the port: browsers send cookies to all ports of a host."""
    return f"{COOKIE}_{request.url.port or 80}"


def guarded(app: App, token: str, hosts: set[str] | None) -> App:
    """Wraps an application: requests without the token, from other pages or to other hosts are refused."""

    async def guard(scope: Scope, receive: Callable[[], Awaitable[Any]], send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                extra = [(key.lower().encode(), value.encode()) for key, value in HEADERS.items()]
                message = {**message, "headers": [*message["headers"], *extra]}
            await send(message)

        request = Request(scope)
        reason = refusal(request, token, hosts)
        response: Any = app if reason is None else Response(reason + "\n", 403, media_type="text/plain")
        await response(scope, receive, send_with_headers)

    return guard


def refusal(request: Request, token: str, hosts: set[str] | None) -> str | None:
    """Returns why a request is refused; None if it is allowed."""
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    if hosts is not None and urlsplit(f"//{host}").hostname not in hosts:
        return "sslpl: not the address of this page"
    if origin is not None and urlsplit(origin).netloc != host:
        return "sslpl: not from another page"
    given = SimpleCookie()
    for line in request.headers.getlist("cookie"):
        given.load(line)
    tokens = [morsel.value for name, morsel in given.items() if name == cookie_name(request)]
    if request.url.path == "/":
        tokens += parse_qs(request.url.query).get("token", [])
    if not any(secrets.compare_digest(each.encode(), token.encode()) for each in tokens):
        return "sslpl: open the link that the run has printed"
    return None


def bound_socket(host: str, port: int) -> socket.socket:
    """Returns a socket that listens at an address; OSError if it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol named, asyncio sends small packets at once, without waiting for acknowledgments.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(128)
    except OSError:
        listener.close()
        raise
    return listener


@contextmanager
def running(app: App, listener: socket.socket) -> Iterator[None]:
    """Serves an application in a thread while the context is open."""
    config = uvicorn.Config(
        app, lifespan="off", log_config=None, access_log=False, ws="none", timeout_graceful_shutdown=1
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = Thread(target=server.run, kwargs={"sockets": [listener]}, name="labeling-page", daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.should_exit = True
        thread.join(timeout=5)
        listener.close()
