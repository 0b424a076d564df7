"""Requests to a running Label Studio over its REST API (api.labelstud.io), with either kind of its tokens."""

from collections.abc import Iterator, Mapping
from http.cookiejar import DefaultCookiePolicy
from typing import Any

import requests

PAGE_SIZE = 100  # tasks of a request
TIMEOUTS = (10.0, 120.0)  # seconds to connect, and between two parts of an answer
MAX_REASON = 300  # characters of an error that are shown
Record = dict[str, Any]
Files = Mapping[str, tuple[str, bytes, str]]  # name of a field -> name, content and media type of its file


class LabelStudioError(Exception):
    """A request that failed; the message, one line, says why."""

    def __init__(self, message: str, code: int | None = None) -> None:
        super().__init__(message)
        self.code = code  # HTTP status; None: nothing answered


class Client:
    """A connection to a server, with the token of a person's account."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url.rstrip("/")
        self._token, self._access = token, ""
        self._session = requests.Session()
        # A session's cookie would make the server authenticate by it, and ask for a CSRF token.
        self._session.cookies.set_policy(DefaultCookiePolicy(allowed_domains=[]))

    def get(self, path: str, **parameters: Any) -> Any:
        """Returns the content at a path of the API."""
        return self._send("GET", path, params=parameters)

    def post(self, path: str, content: Any) -> Any:
        """Posts content as JSON and returns the answer."""
        return self._send("POST", path, json=content)

    def patch(self, path: str, content: Any) -> Any:
        """Changes what is at a path and returns it."""
        return self._send("PATCH", path, json=content)

    def delete(self, path: str) -> None:
        """Deletes what is at a path."""
        self._send("DELETE", path)

    def upload(self, path: str, files: Files) -> Any:
        """Posts files and returns the answer."""
        return self._send("POST", path, files=files)

    def exists(self, path: str) -> bool:
        """True if there is something at a path."""
        try:
            self.get(path)
        except LabelStudioError as error:
            if error.code != 404:
                raise
            return False
        return True

    def tasks(self, query: str, project: int) -> Iterator[Record]:
        """Yields the tasks that a query of the data manager selects, with their annotations."""
        seen, page = 0, 1
        while True:
            found = self.get(
                "api/tasks", project=project, fields="all", query=query, page=page, page_size=PAGE_SIZE
            )  # fmt: skip
            yield from found["tasks"]
            seen, page = seen + len(found["tasks"]), page + 1
            if not found["tasks"] or seen >= found["total"]:
                return

    def _send(self, method: str, path: str, **content: Any) -> Any:
        """Sends a request, with a new access token if the last one is too old."""
        response = self._request(method, path, **content)
        if response.status_code == 401 and is_personal_access_token(self._token):
            self._access = self._new_access_token()
            response = self._request(method, path, **content)
        return content_of(response, f"{method} {self.url}/{path}")

    def _request(self, method: str, path: str, **content: Any) -> requests.Response:
        try:
            # With `auth` given, requests ignores ~/.netrc, whose password would replace the token.
            return self._session.request(
                method, f"{self.url}/{path}", auth=self._authorize, timeout=TIMEOUTS, **content
            )
        except requests.RequestException as error:
            raise LabelStudioError(f"no answer from {self.url}: {reason(error)}") from error

    def _authorize(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if is_personal_access_token(self._token):
            if self._access:
                request.headers["Authorization"] = f"Bearer {self._access}"
        else:
            request.headers["Authorization"] = f"Token {self._token}"
        return request

    def _new_access_token(self) -> str:
        self._access = ""
        response = self._request("POST", "api/token/refresh", json={"refresh": self._token})
        return str(content_of(response, f"POST {self.url}/api/token/refresh")["access"])


def is_personal_access_token(token: str) -> bool:
    """True for a personal access token, a JSON web token; false for a legacy token."""
    return token.count(".") == 2


def content_of(response: requests.Response, request: str) -> Any:
    """Returns the content of a response, None if it has none; LabelStudioError if the request failed."""
    if not response.ok:
        raise LabelStudioError(f"{request}: {response.status_code} {detail(response)}", response.status_code)
    try:
        return response.json() if response.content else None
    except ValueError as error:
        raise LabelStudioError(f"{request}: the answer is not JSON", response.status_code) from error


def detail(response: requests.Response) -> str:
    """Returns what the server says about an error, on one line."""
    try:
        content = response.json()
        text = str(content.get("validation_errors") or content["detail"])
    except (ValueError, LookupError, AttributeError):
        text = response.reason or ""
    return " ".join(text.split())[:MAX_REASON]


def reason(error: BaseException) -> str:
    """Returns why a connection failed: the words of the operating system, or of the innermost exception."""
    found = [error]
    for each in found:  # grows meanwhile
        nested = (*each.args, getattr(each, "reason", None), each.__cause__ or each.__context__)
        found += [inner for inner in nested if isinstance(inner, BaseException) and inner not in found]
    texts = [each.strerror for each in found if isinstance(each, OSError) and each.strerror] or [str(found[-1])]
    return " ".join(texts[0].split())[:MAX_REASON]
