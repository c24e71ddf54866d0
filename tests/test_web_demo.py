"""scripts/web_demo.py, and the chat page before the real server."""

import runpy
import threading
import webbrowser
from types import SimpleNamespace

import pytest
from chat_pages import ChatPage
from programs import PATIENCE, REPOSITORY

DEMO = "scripts/web_demo.py"


@pytest.fixture
def demo(monkeypatch):
    """Returns the program's names, as if no environment variable told of a screen."""
    names = runpy.run_path(str(REPOSITORY / DEMO))
    for name in names["SCREENS"]:
        monkeypatch.delenv(name, raising=False)
    return SimpleNamespace(**names)


@pytest.mark.parametrize(("environment", "platform", "expected"), [
    ({}, "linux", False), ({"DISPLAY": ":0"}, "linux", True), ({"WAYLAND_DISPLAY": "wayland-0"}, "linux", True),
    ({"BROWSER": "w3m"}, "linux", True), ({}, "darwin", True), ({}, "win32", True)])
def test_a_browser_is_started_where_it_can_open_a_window(demo, monkeypatch, environment, platform, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr("sys.platform", platform)
    assert demo.has_screen() is expected


def test_the_browser_opens_the_page_and_keeps_nobody_waiting(demo, monkeypatch, capsys):
    opened, may_return = [], threading.Event()
    is_open = threading.Event()

    def open_slowly(address: str) -> None:
        opened.append(address)
        is_open.set()
        may_return.wait(PATIENCE)

    monkeypatch.setattr(webbrowser, "open", open_slowly)
    demo.open_page("http://127.0.0.1:1")
    monkeypatch.setenv("DISPLAY", ":0")
    demo.open_page("http://127.0.0.1:2")
    assert is_open.wait(PATIENCE)
    may_return.set()
    assert opened == ["http://127.0.0.1:2"], "none without a screen"
    assert capsys.readouterr().out.splitlines() == [
        f"open http://127.0.0.1:{port} in a browser; Ctrl-C ends this" for port in (1, 2)]


@pytest.mark.slow
def test_the_page_and_the_real_server_understand_each_other(browser):
    pytest.importorskip("fastapi", reason="the extra [serve] is not installed")
    from served import HeldEngine, served, server_of, wait_until
    held = HeldEngine()
    with server_of(served("mini"), served("held", held)) as server:
        said = []
        page = browser.new_page(locale="en-US")
        page.on("console", lambda message: said.append(message.text))
        place = SimpleNamespace(address=f"http://127.0.0.1:{server.port}/", models=["mini", "held"])
        chat = ChatPage(page, place, said)
        chat.ask("Hello")
        assert page.locator(".figures .tokens").inner_text() == "8 tokens"
        assert page.locator(".state").inner_text() == "Cut off: the answer reached the token limit."
        page.check("#think")
        chat.press("Settings")
        for name, value in {"temperature": "0", "top_p": "0.5", "top_k": "3", "max_tokens": "4", "seed": "5",
                            "frequency_penalty": "0.5"}.items():
            page.locator(f"input[name={name}]").fill(value)
        page.get_by_label("System prompt").fill("Be brief.")
        chat.press("Close")
        chat.ask("Again")
        assert page.locator(".figures").last.inner_text().startswith("4 tokens")
        assert page.locator(".figures .seed").last.inner_text().endswith("seed 5")

        page.select_option("#model", "held")
        chat.start("Wait")
        wait_until(lambda: held.requests)
        page.keyboard.press("Escape")
        wait_until(lambda: not held.requests)
        chat.see("Stopped.")
        page.close()
        assert said == []
