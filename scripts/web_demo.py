"""Starts the server of serve_openai_api.py and opens its chat page in the browser.

    python scripts/web_demo.py
    python scripts/web_demo.py --weight full_sft --models calls=full_sft+calls smol=../SmolLM2-135M-Instruct

With several models, choose Compare on the page: two answer side by side, and you vote. The browser keeps conversations
for this address, so use the same --port again to find them. Save chats (JSONL) writes them as training data. Without a
screen, as over SSH, open the page from your machine through a tunnel: ssh -L 8998:127.0.0.1:8998 that-machine.
"""

import os
import sys
import threading
import webbrowser

from minimind_sft.errors import run_program
from minimind_sft.serving.program import serve_models
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.serve import ServeSettings
from minimind_sft.terminal import say

SCREENS = ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER", "WSL_DISTRO_NAME")
"""Environment variables: Linux sets one of them where a browser can open a window."""


def main() -> None:
    settings = parse_flags(ServeSettings, description=__doc__)
    serve_models(settings, ready=open_page)


def open_page(address: str) -> None:
    """Opens the page, from a thread: some browsers keep the program waiting that started them."""
    say(f"open {address} in a browser; Ctrl-C ends this")
    if has_screen():
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()


def has_screen() -> bool:
    """Tells whether a browser could open a window: one for terminals would take over this one."""
    return not sys.platform.startswith("linux") or any(os.environ.get(name) for name in SCREENS)


if __name__ == "__main__":
    run_program(main)
