"""The control room's page: static files that hold no data, and how a browser comes by them.

Everything here takes a key, as everything does. A browser that opens a page can send none, so it gets the 401 as a page
that asks for the key: its script sends the key once, as `Authorization`, to `POST /console/session`, and gets a cookie
for it, which no script can read and no other site can send. The cookie stands for the key in reads alone, so that no
forged form can change anything.
"""

import base64
import hashlib
from collections.abc import Callable
from importlib.resources import files

from engine.backoffice.sessions import Sessions
from engine.web.answers import Answer, Header
from engine.web.headers import Headers, bearer_key_of, parse_target
from engine.web.interface import Admission, Interface
from engine.web.key_store import Principal
from engine.web.problems import Code, Problem
from engine.web.routes import Call, RouteTable

COOKIE = "miaocang_console"
SESSION_PATH = ("console", "session")
READS = ("GET", "HEAD")
HTML = "text/html; charset=utf-8"

_STATIC = files("engine.backoffice") / "console_page"
_TYPES = {
    "index.html": HTML,
    "console.css": "text/css; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
}
_PAGE_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
_SIGN_IN_POLICY = (
    "default-src 'none'; script-src '{script}'; style-src '{style}'; connect-src 'self'; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)


class Console:
    """The routes of the control room."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._files = {name: (_STATIC / name).read_bytes() for name in _TYPES}

    async def read_console(self, _call: Call) -> Answer | Problem:
        """The page."""
        return self._file("index.html")

    async def read_console_script(self, _call: Call) -> Answer | Problem:
        """What the page does."""
        return self._file("console.js")

    async def read_console_style(self, _call: Call) -> Answer | Problem:
        """What the page looks like."""
        return self._file("console.css")

    async def redirect_to_console(self, _call: Call) -> Answer | Problem:
        """The page's address has a slash at its end, so that its parts are found beside it."""
        return Answer(308, b"", (("Location", "/console/"),))

    async def begin_session(self, call: Call) -> Answer | Problem:
        """Give a cookie for the key that the request came with."""
        key = bearer_key_of(call.headers)
        if key is None:  # a cookie is no credential for a change, so this cannot be reached by one
            return Problem(Code.UNAUTHORIZED, "Send `Authorization: Bearer KEY`.")
        return Answer(204, b"", (("Set-Cookie", _cookie(self._sessions.begin(key), call.headers)),))

    async def end_session(self, call: Call) -> Answer | Problem:
        """Sign out."""
        if (token := token_of(call.headers)) is not None:
            self._sessions.end(token)
        return Answer(204, b"", (("Set-Cookie", _cookie("", call.headers) + "; Max-Age=0"),))

    def _file(self, name: str) -> Answer:
        # Not kept: after an update the page and its script must be of one version, and they are small.
        return Answer(200, self._files[name], (("Content-Type", _TYPES[name]), *_page_headers(_PAGE_POLICY)))


class ConsoleInterface(Interface):
    """The back office's interface, for browsers too: a session's cookie is a key for reads, and the control room's 401
    is a page to whoever would rather have one."""

    def __init__(
        self,
        name: str,
        routes: RouteTable,
        principal: Callable[[str], Principal | None],
        body_bytes_max: int,
        sessions: Sessions,
    ) -> None:
        super().__init__(name, routes, principal, body_bytes_max)
        self._sessions = sessions
        self._sign_in = _sign_in_page()

    def admit(self, method: str, target: str, headers: Headers) -> Admission:
        """As every interface does, with the cookie's key where no other was sent."""
        path = parse_target(target).segments
        signs_out = method == "DELETE" and path == SESSION_PATH
        known = self._with_session(headers) if method in READS or signs_out else headers
        admission = super().admit(method, target, known)
        refused = admission.refused
        if refused is None or refused.status != 401 or path[0] != "console" or not prefers_html(headers):
            return admission
        kept = tuple(header for header in refused.headers if header[0] != "Content-Type")
        page = refused._replace(body=self._sign_in.body, headers=(*self._sign_in.headers, *kept))
        return Admission(admission.request_id, admission.route, admission.arrived, headers, refused=page)

    def _with_session(self, headers: Headers) -> Headers:
        token = None if headers("Authorization") else token_of(headers)
        key = self._sessions.key_of(token) if token is not None else None
        if key is None:
            return headers
        given = f"Bearer {key}"
        return lambda name: (given,) if name == "Authorization" else headers(name)


def token_of(headers: Headers) -> str | None:
    """The session's token in the request's cookies."""
    for pair in ";".join(headers("Cookie")).split(";"):
        name, _, value = pair.strip().partition("=")
        if name == COOKIE and value:
            return value
    return None


def prefers_html(headers: Headers) -> bool:
    """Whether an HTML page is named before JSON, as browsers do when they open a page."""
    for media_range in ",".join(headers("Accept")).split(","):
        media_type = media_range.partition(";")[0].strip().lower()
        if media_type in ("text/html", "application/xhtml+xml"):
            return True
        if media_type.startswith("application/"):
            return False
    return False


def _cookie(token: str, headers: Headers) -> str:
    """No `Max-Age`: it ends with the browser. `Secure` wherever TLS ends before us, which a proxy says."""
    secure = "; Secure" if "https" in headers("X-Forwarded-Proto") else ""
    return f"{COOKIE}={token}; Path=/; HttpOnly; SameSite=Strict{secure}"


def _page_headers(policy: str) -> tuple[Header, ...]:
    return (
        ("Content-Security-Policy", policy),
        ("X-Content-Type-Options", "nosniff"),
        ("Referrer-Policy", "no-referrer"),
        ("Cache-Control", "no-store"),
    )


def _sign_in_page() -> Answer:
    """The page that asks for a key, in one piece, for nothing else is to be had without one. Its policy names script
    and style by their digests."""
    style, script = ((_STATIC / name).read_text("utf-8") for name in ("sign_in.css", "sign_in.js"))
    page = (_STATIC / "sign_in.html").read_text("utf-8").replace("/* style */", style).replace("/* script */", script)
    policy = _SIGN_IN_POLICY.format(script=_digest_source(script), style=_digest_source(style))
    return Answer(401, page.encode(), (("Content-Type", HTML), *_page_headers(policy)))


def _digest_source(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
