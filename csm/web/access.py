"""Who may come in, and by which name they may ask for: host, origin, key. Data and rules alone; `doors` asks them."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.cookies import CookieError, SimpleCookie
from urllib.parse import urlsplit

from csm.config import Environment

LOOPBACK = ("localhost", "127.0.0.1", "::1")
SHARED = ".gradio.live"  # the names that Gradio's `share` gives
EVERYWHERE = ("0.0.0.0", "::")
COOKIE = "csm_page"
FOREIGN_HOST = "This server doesn't go by the name “{}”: whoever runs it can add the name to CSM_HOSTS."
FOREIGN_ORIGIN = "Other sites may not ask this server: whoever runs it can add “{}” to CSM_ORIGINS."
NO_HOST = "X-Forwarded-Host has to be a name or an address, with a port or without: a proxy has sent something else."
NO_KEY = "The API key is missing or wrong: send it as a bearer token."

# What the page is made of, and the papers; it holds nothing of anybody's. Some are asked whether the app is up.
OPEN = ("/assets/", "/static/", "/svelte/", "/csm/script/", "/custom_component/", "/gradio_api/custom_component/")
OPEN_FILES = (
    *("/", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", "/pwa_icon"),
    *("/health", "/ready", "/docs", "/openapi.json"),
    *("/gradio_api/theme.css", "/gradio_api/app_id", "/gradio_api/startup-events"),
)
# What programs come through: the page's cookie doesn't open these.
PROGRAMS = ("/v1/", "/gradio_api/call/", "/gradio_api/api/", "/gradio_api/mcp")
FORWARDED = re.compile(r"\s*([a-z0-9_.-]+|\[[0-9a-f:.]+\])(:\d{1,5})?\s*", re.IGNORECASE | re.ASCII)


@dataclass(frozen=True)
class Refused:
    """Why somebody may not come in: an HTTP status, one sentence, and a name for the case."""

    status: int
    sentence: str
    code: str


@dataclass(frozen=True)
class Access:
    """The rules. `hosts` are names without a port, and `*` is all of them; `origins` such as `https://example.org`.

    With `any_address` the server may be asked for by any IP address: it listens at all of them, and no site can make a
    browser believe that an address is a name of its own.
    """

    hosts: frozenset[str] = frozenset(LOOPBACK)
    origins: frozenset[str] = frozenset()
    any_address: bool = False
    embedded: bool = False
    key: str | None = field(default=None, repr=False)

    @classmethod
    def of(cls, environment: Environment, listens_at: str | None = None) -> Access:
        """What the environment says; `listens_at` where the command line said so."""
        at = (listens_at or environment.listens_at).strip("[]").casefold()
        names = {*LOOPBACK, *map(str.casefold, environment.hosts), environment.space_host.casefold()}
        if at and at not in EVERYWHERE:
            names.add(at)
        origins = frozenset(origin.rstrip("/").casefold() for origin in environment.origins)
        embedded = bool(environment.space_host)
        return cls(frozenset(names - {""}), origins, at in EVERYWHERE, embedded, environment.api_key)

    def refused(self, method: str, path: str, headers: Mapping[str, str], from_here: bool) -> Refused | None:
        """Why this request is refused; None for one that may come in. `headers` have lower-case names."""
        host = headers.get("host", "")
        if not self._known(name_of(host)):
            return Refused(403, FOREIGN_HOST.format(host[:100]), "foreign_host")
        if (told := headers.get("x-forwarded-host")) and not all(map(FORWARDED.fullmatch, told.split(","))):
            return Refused(400, NO_HOST, "invalid_request")  # Gradio makes addresses of it
        origin, site = headers.get("origin"), headers.get("sec-fetch-site", "")
        if origin is not None and not self._same(origin, headers):
            return Refused(403, FOREIGN_ORIGIN.format(origin[:100]), "foreign_origin")
        visits = method in ("GET", "HEAD") and headers.get("sec-fetch-mode") == "navigate"
        if origin is None and site == "cross-site" and not visits:
            return Refused(403, FOREIGN_ORIGIN.format("the site"), "foreign_origin")
        if self.key is None or self._open(path) or self.keyed(headers):
            return None
        if not path.startswith(PROGRAMS) and self.from_page(headers):
            return None
        if from_here and method == "GET" and headers.get("x-gradio-user") == "mcp" and not path.startswith("/v1"):
            return None  # Gradio's MCP server looks up its own app; who called it has shown the key
        return Refused(401, NO_KEY, "invalid_api_key")

    def listed(self, origin: str | None) -> bool:
        """Whether another site was given leave to ask."""
        return origin is not None and origin.casefold() in self.origins

    def keyed(self, headers: Mapping[str, str]) -> bool:
        """Whether somebody has shown the key, or none is asked for."""
        if self.key is None:
            return True
        scheme, _, given = headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self.key.encode())

    def cookie(self) -> str | None:
        """What the page's first answer sets, so that what it asks afterwards is known to be the page's."""
        if self.key is None:
            return None
        drawn = secrets.token_hex(12)
        rules = "SameSite=None; Secure; Partitioned" if self.embedded else "SameSite=Strict"
        return f"{COOKIE}={drawn}.{self._signed(drawn)}; Path=/; HttpOnly; {rules}"

    def from_page(self, headers: Mapping[str, str]) -> bool:
        """Whether the cookie of the page comes with it."""
        try:
            found = SimpleCookie(headers.get("cookie", "")).get(COOKIE)
        except CookieError:
            return False
        drawn, _, signed = (found.value if found else "").partition(".")
        return bool(drawn) and hmac.compare_digest(signed.encode(), self._signed(drawn).encode())

    def _signed(self, drawn: str) -> str:
        return hmac.new((self.key or "").encode(), f"page {drawn}".encode(), hashlib.sha256).hexdigest()

    def _known(self, name: str) -> bool:
        if "*" in self.hosts or name in self.hosts or name.endswith(SHARED):
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.any_address or address.is_loopback

    def _same(self, origin: str, headers: Mapping[str, str]) -> bool:
        """Whether the page that asks came from this server itself, or from a site that may."""
        if self.listed(origin) or "*" in self.origins:
            return True
        asked = urlsplit(origin).netloc.casefold()
        forwarded = headers.get("x-forwarded-host", "").partition(",")[0].strip()
        own = {headers.get("host", "").casefold(), *([forwarded.casefold()] if self._known(name_of(forwarded)) else [])}
        return bool(asked) and asked in own

    def _open(self, path: str) -> bool:
        return path in OPEN_FILES or path.startswith(OPEN)


def name_of(host: str) -> str:
    """The name in a Host header, without its port and brackets."""
    host = host.strip().casefold()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host
