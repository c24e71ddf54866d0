"""The chat page in a browser, in front of a fake server: what its tests share."""

from collections.abc import Iterator
from typing import Any

import pytest
from fake_chat_server import FakeChatServer, serving
from programs import PATIENCE

PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True}
NO_ANSWER = "Failed to load resource"
"""The browser's console says this of every answer that is an error."""
NOTICES_STAY = """{
  const later = window.setTimeout;
  window.setTimeout = (act, pause, ...more) => later(act, pause === 10_000 ? 1_000_000_000 : pause, ...more);
}"""
"""A script: notices stay, which the page takes away after 10 seconds, or a slow test would come too late for them."""


class ChatPage:
    """One tab with the chat page."""

    def __init__(self, page: Any, server: FakeChatServer, said: list[str]):
        self.page, self.server, self.said = page, server, said
        page.set_default_timeout(PATIENCE * 1000)
        self.open()

    def open(self) -> None:
        """Loads the page, or loads it again, and waits for the names of the models."""
        self.page.goto(self.server.address)
        names = "".join(f"[value={name}]" for name in self.server.models[-1:])
        self.page.locator(f"#model option{names}").wait_for(state="attached")

    def start(self, question: str) -> None:
        """Asks, once nothing is being answered, and waits until the question is shown."""
        self.wait()
        self.page.fill("#message", question)
        self.page.keyboard.press("Enter")
        self.page.locator(".bubble").get_by_text(question, exact=True).last.wait_for()

    def ask(self, question: str) -> str:
        """Asks, waits for the end of the answer, and returns the answer."""
        self.start(question)
        self.wait()
        return self.answers()[-1]

    def wait(self) -> None:
        """Waits until nothing is being answered."""
        self.page.locator("#send:not(.stops)").wait_for()

    def see(self, text: str) -> None:
        """Waits until a text is shown, by itself."""
        self.page.locator("main, #notice").get_by_text(text, exact=True).last.wait_for()

    def answers(self) -> list[str]:
        return self.page.locator(".answer .content").all_inner_texts()

    def questions(self) -> list[str]:
        return self.page.locator(".bubble").all_inner_texts()

    def press(self, name: str, at: int = -1) -> None:
        """Presses the button of that name, the last one if there are several."""
        buttons = self.page.get_by_role("button", name=name, exact=True)
        (buttons.last if at == -1 else buttons.nth(at)).click()

    def save(self, name: str) -> str:
        """Presses a button that saves a file, and returns what is in the file."""
        with self.page.expect_download() as download:
            self.press(name)
        return download.value.path().read_text(encoding="utf-8")

    def sent(self, at: int = -1) -> list[dict]:
        """Returns the messages of a request."""
        return self.server.bodies[at]["messages"]


@pytest.fixture
def chat_server() -> Iterator[FakeChatServer]:
    with serving() as server:
        yield server


@pytest.fixture
def open_chat(browser, chat_server) -> Iterator[Any]:
    """Opens the page in a new window with Playwright's options; checks that it complains of nothing, and asks its own
    server only."""
    contexts, said, asked = [], [], []

    def call(**options: Any) -> ChatPage:
        context = browser.new_context(**{"locale": "en-US", **options})
        contexts.append(context)
        context.add_init_script(NOTICES_STAY)
        context.on("page", lambda page: page.on("pageerror", lambda error: said.append(str(error))))
        context.on("console", lambda message: message.text.startswith(NO_ANSWER) or said.append(message.text))
        context.on("request", lambda request: asked.append(request.url))
        return ChatPage(context.new_page(), chat_server, said)

    yield call
    for context in contexts:
        context.close()
    assert said == [], said
    assert {address for address in asked if not address.startswith((chat_server.address, "blob:"))} == set()
