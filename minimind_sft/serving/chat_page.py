"""The chat page's files, and the headers that keep the page from loading or running anything else."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from minimind_sft.files import read_text

FOLDER = Path(__file__).parent / "page"

MEDIA_TYPES = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

POLICY = ("default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
          "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
          "require-trusted-types-for 'script'; trusted-types 'none'")
"""The page runs its own scripts and talks to its own server only. No text can become markup or script: browsers that
know trusted types refuse `innerHTML` and the like altogether."""

HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}


class PageFile(NamedTuple):
    """A file of the page as it is sent."""

    content: bytes
    headers: Mapping[str, str]


def page_files() -> dict[str, PageFile]:
    """Reads the page. Returns its files by their address: "/", and "/page/NAME" for what it loads."""
    files = {}
    for path in sorted(FOLDER.iterdir()):
        if path.suffix in MEDIA_TYPES:
            address = "/" if path.name == "index.html" else f"/page/{path.name}"
            headers = {**HEADERS, "Content-Type": f"{MEDIA_TYPES[path.suffix]}; charset=utf-8"}
            files[address] = PageFile(read_text(path).encode(), headers)
    return files
