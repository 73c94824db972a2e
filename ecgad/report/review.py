"""A screening looked through by a person: the strangest record first, its page, a verdict.

A page served on 127.0.0.1 from OUT/part-*.parquet, OUT/manifest.json and the recordings themselves,
which are read and scored again as they are looked at. Verdicts go into OUT/review.sqlite.

What the page shows is of patients, so nothing of it is for other programs on the machine or for
other pages in the browser: an address without the token is refused, as is another name for this
machine than its own (DNS rebinding) and a verdict sent from elsewhere. Nothing is fetched from
outside, and the browser is told not to.
"""

from __future__ import annotations

import getpass
import secrets
import shlex
import socket
import webbrowser
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import cached_property
from itertools import chain, pairwise
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import uvicorn
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ecgad.bundle import SHIPPED, Bundle, load
from ecgad.read import Stated, read_hours
from ecgad.record import Result
from ecgad.report import number
from ecgad.report.html import manifest_head, template
from ecgad.report.page import page_html
from ecgad.report.ranking import Ranking
from ecgad.report.verdicts import VERDICTS, Verdicts, key

LISTED = 100  # records in the list at a time
NOTE = 2000  # characters of the longest note
IN_LIST = ("record_id", "path", "score", "p_value", "decision", "quality")
IN_VERDICT = ("record_id", "path", "source_sha256")
ON_PAGE = (*IN_VERDICT, "score", "error")
NOTHING = ("", "")  # said of a record: no verdict, no note
NAMES = ["127.0.0.1", "localhost"]  # of this machine, in an address


class Review:
    """The rows of the screening in `out`, and what was said of them, by the numbers of rows.

    Raises `ValueError` when there is no screening in `out`, or when nothing can be written there.
    """

    def __init__(self, out: Path, reviewer: str = "") -> None:
        self.out, self.reviewer = out, reviewer
        self.manifest = manifest_head(out)
        self.ranking, self.verdicts = Ranking(out), Verdicts(out)
        self.said: dict[int, tuple[str, str]] = {}  # verdict and note
        self.done = np.zeros(len(self.ranking), dtype=bool)  # which have a verdict
        self.before: list[tuple[int, tuple[str, str]]] = []  # what can be undone, newest last
        self.drawing = Lock()  # a page at a time; matplotlib asks for no less
        newest = self.verdicts.newest()
        numbers = self.ranking.with_paths([path for path, _ in newest])
        for row in self.ranking.rows(numbers, IN_VERDICT):
            if known := newest.get(key(row)):
                self._set(row["n"], (known["verdict"], known["note"]))

    @cached_property
    def bundle(self) -> Bundle:
        return model_of(self.out, self.manifest)

    def say(self, n: int, verdict: str, note: str) -> None:
        """Keeps what is said of row `n`; "" takes a verdict back."""
        before = n, self.said.get(n, NOTHING)
        self._keep(n, verdict, note)
        self.before.append(before)

    def undo(self) -> int | None:
        """Says again what was said before the last `say`; the row that this was of."""
        if not self.before:
            return None
        n, said = self.before[-1]
        self._keep(n, *said)
        self.before.pop()
        return n

    def _keep(self, n: int, verdict: str, note: str) -> None:
        (row,) = self.ranking.rows([n], IN_VERDICT)
        self.verdicts.add(row, verdict, note, self.reviewer)
        self._set(n, (verdict, note))

    def _set(self, n: int, said: tuple[str, str]) -> None:
        self.said[n], self.done[n] = said, bool(said[0])

    def state(self, n: int | None) -> dict[str, Any]:
        """What is said of row `n`, where it is listed, and how many have a verdict in each list."""
        verdict, note = NOTHING if n is None else self.said.get(n, NOTHING)
        view = next((name for name, order in self.ranking.views.items() if n in order), "")
        return {"n": n, "verdict": verdict, "note": note, "view": view, "reviewed": self.reviewed()}

    def reviewed(self) -> dict[str, int]:
        return {name: int(self.done[order].sum()) for name, order in self.ranking.views.items()}

    def window(self, view: str, n: int | None) -> dict[str, Any]:
        """The piece of a list that holds row `n`, or else the first row that has no verdict."""
        order = self.ranking.views[view]
        here = np.flatnonzero(order == n) if n is not None else np.flatnonzero(~self.done[order])
        at = int(here[0]) if len(here) else 0
        start = at - at % LISTED
        rows = self.ranking.rows(order[start : start + LISTED], IN_LIST)
        for row in rows:
            row["verdict"], row["note"] = self.said.get(row["n"], NOTHING)
        return {
            "view": view, "total": len(order), "start": start, "at": at - start, "rows": rows,
            "earlier": order[start - 1] if start else None,
            "later": order[start + LISTED] if start + LISTED < len(order) else None,
        }  # fmt: skip

    def drawn(self, n: int) -> dict[str, Any]:
        """Row `n`, and its page or why there is none."""
        (row,) = self.ranking.rows([n], ON_PAGE)
        if row["error"]:
            return {"row": row, "problem": row["error"]}
        try:
            with self.drawing:
                result = self._result(row)
                return {"row": row, "page": Markup(page_html(result)), "moved": moved(row, result)}
        except Exception as error:  # over what a file holds; the next record may be sound
            return {"row": row, "problem": str(error) or type(error).__name__}

    def _result(self, row: dict[str, Any]) -> Result:
        place = Path(self.manifest.get("from") or "", row["path"])
        stated = Stated(**self.manifest.get("stated") or {})
        bundle, pieces = self.bundle, read_hours(place, stated)
        if (first := next(pieces)).source_sha256 != row["source_sha256"]:
            raise ValueError(
                f"{row['path']} has changed since it was screened: its sha256 was "
                f"{str(row['source_sha256'])[:12]}…, and is {first.source_sha256[:12]}… now"
            )
        return bundle.score_hours(chain([first], pieces), alpha=self.manifest["alpha"])


def moved(row: dict[str, Any], result: Result) -> str:
    """The scores of now and then in words where they differ: another version made the screening."""
    then = np.nan if row["score"] is None else row["score"]
    if np.isclose(then, result.score, rtol=1e-3, atol=1e-6, equal_nan=True):
        return ""
    return f"{number(result.score)}, and not {number(then)} as in the list"


def model_of(out: Path, manifest: dict[str, Any]) -> Bundle:
    """The model that a screening was made with: in OUT, where its command found it, or shipped.

    Raises `ValueError` when none of them is the one whose checksum the manifest holds.
    """
    wanted = manifest.get("model")
    if not wanted:
        raise ValueError(f"{out / 'manifest.json'} names no model to draw the page with")
    words = shlex.split(manifest["command"])
    named = [Path(b) for a, b in pairwise(words) if a == "--model"]
    for place in (out / "model", *named, SHIPPED):
        if (place / "card.json").is_file() and (bundle := load(place)).sha256 == wanted["sha256"]:
            return bundle
    where = ", ".join(map(str, named)) or SHIPPED
    raise ValueError(
        f"the model of this screening, {wanted['id']} ({wanted['sha256'][:12]}…), is not "
        f"in {where}: put it there, or start `ecgad review` in the folder where the screening began"
    )


# The application


def application(review: Review, token: str) -> ASGIApp:
    """What answers requests below /`token`/."""
    nonce = secrets.token_urlsafe(16)
    page = template("review.html")

    async def index(request: Request) -> Response:
        views, asked = review.ranking.views, request.query_params
        first = next(name for name, order in views.items() if len(order))
        view = asked["view"] if asked.get("view") in views else first
        n = asked.get("n", "")
        window = review.window(view, int(n) if n.isdecimal() else None)
        text = page.render(
            **window, nonce=nonce, manifest=review.manifest, out=str(review.out), verdicts=VERDICTS,
            counts={name: len(order) for name, order in views.items()}, reviewed=review.reviewed(),
            longest=NOTE,
        )  # fmt: skip
        return HTMLResponse(text)

    def record(request: Request) -> Response:  # not async: drawing must not hold up a verdict
        n = request.path_params["n"]
        if n >= len(review.ranking):
            return PlainTextResponse("no such record", 404)
        shown = page.new_context(review.drawn(n))
        return HTMLResponse("".join(page.blocks["record"](shown)))

    async def say(request: Request) -> Response:
        n = request.path_params["n"]
        try:
            said = await request.json()
            verdict, note = str(said["verdict"]), str(said["note"])[:NOTE]
        except (ValueError, TypeError, KeyError):
            return PlainTextResponse("a verdict and a note are needed, as JSON", 400)
        if n >= len(review.ranking) or verdict not in ("", *VERDICTS):
            return PlainTextResponse("no such record or verdict", 400)
        review.say(n, verdict, note)
        return JSONResponse(review.state(n))

    async def undo(request: Request) -> Response:
        return JSONResponse(review.state(review.undo()))

    async def csv(request: Request) -> Response:
        named = {"Content-Disposition": 'attachment; filename="review.csv"'}
        return Response(review.verdicts.csv(), media_type="text/csv", headers=named)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        review.verdicts.write_csv()

    routes = [
        Route(f"/{token}/", index),
        Route(f"/{token}/record/{{n:int}}", record),
        Route(f"/{token}/record/{{n:int}}", say, methods=["POST"]),
        Route(f"/{token}/undo", undo, methods=["POST"]),
        Route(f"/{token}/review.csv", csv),
    ]
    guards = [
        Middleware(TrustedHostMiddleware, allowed_hosts=NAMES),
        Middleware(Guard, token=token, nonce=nonce),
    ]
    return Starlette(routes=routes, middleware=guards, lifespan=lifespan)


class Guard:
    """Refuses requests without the token and verdicts from other pages; tells the browser to fetch
    and run nothing that is not in the page."""

    def __init__(self, app: ASGIApp, token: str, nonce: str) -> None:
        self.app, self.token = app, token
        self.headers = {
            "Content-Security-Policy": "default-src 'none'; img-src data:; connect-src 'self'; "
            f"style-src 'unsafe-inline'; script-src 'nonce-{nonce}'; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'",
            "Cache-Control": "no-store",
            "Referrer-Policy": "same-origin",
            "X-Content-Type-Options": "nosniff",
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_on(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self.headers)
            await send(message)

        refused = scope["type"] == "http" and self._refused(scope)
        app = PlainTextResponse(refused, 403) if refused else self.app
        await app(scope, receive, send_on)

    def _refused(self, scope: Scope) -> str:
        headers, token = Headers(scope=scope), scope["path"].strip("/").partition("/")[0]
        if not secrets.compare_digest(token.encode(), self.token.encode()):
            return "the address is not whole: take the one that `ecgad review` printed"
        if scope["method"] == "POST" and headers.get("origin") != f"http://{headers['host']}":
            return "a verdict from another page is not taken"
        return ""


def serve(
    out: Path,
    *,
    port: int = 0,
    reviewer: str = "",
    browser: bool = True,
    tell: Callable[[str], None],
) -> None:
    """Serves the review of the screening in `out` until interrupted; `tell` hears the address.

    `port` 0 is any free one. Raises what `Review` raises, and `ValueError` when `port` is taken.
    """
    token = secrets.token_urlsafe(16)
    app = application(Review(out, reviewer or _user()), token)
    with _listening(port) as door:
        address = f"http://127.0.0.1:{door.getsockname()[1]}/{token}/"
        tell(address)
        if browser:
            webbrowser.open(address)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", ws="none", lifespan="on"))
        with suppress(KeyboardInterrupt):
            server.run(sockets=[door])


def _user() -> str:
    """Their name on this machine, which may not know one."""
    with suppress(OSError, KeyError):
        return getpass.getuser()
    return ""


def _listening(port: int) -> socket.socket:
    """From here on a browser's request waits to be answered."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except (OSError, OverflowError) as error:
        raise ValueError(f"port {port} cannot be had ({error}): take another --port") from error
