"""The chat page for readers: languages, themes, narrow screens, keyboard, screen readers, full storage, two tabs."""

import pytest
from chat_pages import PHONE
from fake_chat_server import WAIT
from test_report_browser import LOWEST_CONTRAST

pytestmark = pytest.mark.slow

RICH = """# A title

Words with `code`, [a link](https://example.com/a_long_address_that_goes_on_and_on_and_on_and_on) and https://b.example/.

- one
  1. `""" + "long" * 40 + """`

| a | b | c | d | e |
|---|--:|:-:|---|---|
| """ + " | ".join(["a cell of words"] * 5) + """ |

> quoted

```python
print("a line of code that is longer than a phone is wide, and does not break anywhere")
```
"""


def fill_with_everything(chat) -> None:
    """Makes a chat that shows all that the page can show."""
    call = {"index": 0, "id": "c1", "function": {"name": "look", "arguments": '{"at": "' + "x" * 80 + '"}'}}
    chat.server.answers |= {"rich": [{"reasoning_content": "Hm."}, RICH], "fails": (400, "no " * 40, {}),
                            "call": [{"tool_calls": [call]}]}
    for question in ("rich", "fails", "call"):
        chat.ask(question)
    chat.page.check("#compare")
    chat.ask("two")
    chat.page.locator(".vote").first.click()
    chat.page.uncheck("#compare")
    chat.ask("call")
    chat.page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")


def test_both_languages_say_everything(open_chat):
    chat = open_chat(locale="zh-CN")
    both = chat.page.evaluate("import('/page/strings.js').then(all => all.STRINGS)")
    assert set(both["en"]) == set(both["zh"]) and all(map(str.strip, both["zh"].values()))
    marks = {name: [part.split("}")[0] for part in text.split("{")[1:]] for name, text in both["en"].items()}
    assert {name: sorted(part.split("}")[0] for part in text.split("{")[1:]) for name, text in both["zh"].items()} == {
        name: sorted(found) for name, found in marks.items()}
    assert chat.page.locator("html").get_attribute("lang") == "zh-CN"
    assert chat.page.locator("h2").inner_text() == "想聊点什么？" and chat.page.locator("#send").inner_text() == "发送"
    chat.page.get_by_role("button", name="你是谁？").click()
    chat.wait()
    assert chat.answers() == ["I am mini."] and chat.page.locator(".figures .tokens").inner_text() == "3 个 token"
    chat.press("设置")
    chat.page.get_by_label("语言").select_option("en")
    assert chat.page.locator("#settings-title").inner_text() == "Settings"
    assert chat.page.evaluate("document.activeElement.value") == "en", "the reader stays where it was"
    chat.press("Close")
    assert chat.page.locator("#send").inner_text() == "Send"
    chat.open()
    assert chat.page.locator("h2").inner_text() == "What shall we try?", "the choice is kept"


def test_themes_can_be_read(open_chat):
    chat = open_chat(color_scheme="dark")
    fill_with_everything(chat)
    dark = chat.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert chat.page.evaluate(LOWEST_CONTRAST) >= 4.5  # WCAG 2.2, level AA
    chat.press("Settings")
    chat.page.get_by_label("Theme").select_option("light")
    chat.page.keyboard.press("Escape")
    chat.page.locator("dialog[open]").wait_for(state="detached")
    light = chat.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert light == "rgb(245, 246, 248)" and dark == "rgb(17, 21, 27)"
    assert chat.page.evaluate(LOWEST_CONTRAST) >= 4.5
    for one in ("#sidebar", "header", "#composer"):
        assert chat.page.evaluate(LOWEST_CONTRAST.replace("main *", f"{one} *")) >= 4.5


@pytest.mark.parametrize("language", ["en-US", "zh-CN"])
def test_a_phone_shows_everything_within_its_width(open_chat, language):
    chat = open_chat(**PHONE, locale=language)
    fill_with_everything(chat)
    assert chat.page.evaluate("document.documentElement.scrollWidth") == 360
    outside = chat.page.evaluate("""[...document.querySelectorAll('main *')].filter(one => !one.closest('.scroll, pre')
        && one.checkVisibility() && one.getBoundingClientRect().right > 360).map(one => one.outerHTML.slice(0, 80))""")
    assert outside == []
    small = chat.page.evaluate("""[...document.querySelectorAll('main button, main select')].filter(one =>
        one.checkVisibility() && one.getBoundingClientRect().height < 24).map(one => one.outerHTML)""")
    assert small == [], "a finger cannot hit it"  # WCAG 2.2, target size
    broken = chat.page.evaluate("""[...document.querySelectorAll('.figure')].filter(one => one.checkVisibility()
        && one.getClientRects().length > 1).map(one => one.textContent)""")
    assert broken == [], "a line ends between a number and its unit"
    chat.page.locator("#open-menu").click()
    chat.page.locator("#sidebar").get_by_role("button", name="rich").wait_for()
    chat.page.keyboard.press("Escape")
    chat.page.locator("#sidebar").wait_for(state="hidden")
    assert chat.page.evaluate("document.activeElement.id") == "open-menu"
    chat.page.locator("#open-menu").click()
    chat.page.locator("#open-settings").click()
    tops = chat.page.evaluate("[...document.querySelectorAll('#settings .numbers input')].map(one => one.offsetTop)")
    assert len(tops) == 6 and tops[::2] == tops[1::2], "fields stand side by side, however long their labels are"


def test_the_keyboard_does_everything(open_chat):
    chat = open_chat(viewport={"width": 1100, "height": 800})
    chat.page.locator("#message").focus()
    chat.page.keyboard.type("one")
    chat.page.keyboard.press("Shift+Enter")
    chat.page.keyboard.type("two")
    composing = "new KeyboardEvent('keydown', {key: 'Enter', isComposing: true, bubbles: true, cancelable: true})"
    chat.page.evaluate(f"document.getElementById('message').dispatchEvent({composing})")
    assert chat.questions() == [] and chat.page.locator("#message").input_value() == "one\ntwo", (
        "Enter that chooses a Chinese word sends nothing")
    chat.page.keyboard.press("Enter")
    chat.see("I am mini.")
    assert chat.questions() == ["one\ntwo"]
    chat.wait()
    chat.page.keyboard.press("Tab")
    reached = []
    for _ in range(40):
        reached.append(chat.page.evaluate("""(() => { const one = document.activeElement;
            return one.getAttribute('aria-label') || one.textContent.trim() || one.id; })()"""))
        assert chat.page.evaluate("""(() => { const one = document.activeElement; return one === document.body
            || getComputedStyle(one).outlineStyle !== 'none' || one.id === 'message'; })()"""), "focus can be seen"
        chat.page.keyboard.press("Tab")
    assert {"Go to the message field", "New chat", "Rename", "Delete", "Settings", "Model", "compare", "Edit", "Copy",
            "Answer again", "think", "Send"} <= set(reached)


def test_a_screen_reader_knows_every_control(open_chat):
    chat = open_chat()
    fill_with_everything(chat)
    nameless = chat.page.evaluate("""[...document.querySelectorAll('button, input, select, textarea, section, nav')]
        .filter(one => one.checkVisibility() && !one.getAttribute('aria-label') && !one.textContent.trim()
                       && !one.labels?.length).map(one => one.outerHTML)""")
    assert nameless == []
    assert chat.page.locator("h1").inner_text() == "rich" and chat.page.title() == "rich"
    regions = chat.page.locator("[aria-live]").count()
    assert regions == 1, "an answer that grows is not read out piece by piece"
    assert chat.page.get_by_role("region", name="You").count() == 5
    assert chat.page.get_by_role("region", name="Answer A · ").count() == 1


def test_a_full_storage_is_said_and_the_chat_goes_on(open_chat):
    chat = open_chat()
    chat.page.evaluate("""(() => {
      const setItem = Storage.prototype.setItem;
      Storage.prototype.setItem = function (name, value) {
        if (name.startsWith('minimind-chat')) throw new DOMException('full', 'QuotaExceededError');
        setItem.call(this, name, value);
      };
    })()""")
    assert chat.ask("q") == "I am mini." and chat.ask("r") == "I am mini."
    chat.see("The browser's storage is full: new messages are lost when this tab closes. Save and delete old chats.")


def test_questions_answers_and_code_are_copied(open_chat):
    chat = open_chat()
    chat.server.answers["q"] = ["a **b**\n```py\n<i>code</i>\n```"]
    chat.ask("q")
    chat.page.evaluate("""() => { window.copied = [], window.labels = [];
        new MutationObserver(all => window.labels.push(...all.map(one => one.target.getAttribute("aria-label"))))
            .observe(document.body, { subtree: true, attributeFilter: ["aria-label"] });
        navigator.clipboard.writeText = async text => { window.copied.push(text); };
        document.addEventListener("copy", () => window.copied.push(`by hand: ${document.activeElement.value}`)); }""")
    for where in (".question .icon", ".copy-code", ".answer > .actions .icon"):
        chat.page.locator(where).first.click()
    chat.page.evaluate("""async () => { while (window.labels.filter(one => one === "Copied").length < 2)
        await new Promise(go => setTimeout(go)); }""")  # for two seconds each
    chat.page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error('not over http')); }")
    chat.page.locator(".copy-code").click()
    chat.page.evaluate("async () => { while (window.copied.length < 4) await new Promise(go => setTimeout(go)); }")
    assert chat.page.evaluate("window.copied") == ["q", "<i>code</i>", "a **b**\n```py\n<i>code</i>\n```",
                                                   "by hand: <i>code</i>"]
    assert chat.page.locator("textarea.unseen").count() == 0


def test_chats_are_renamed_deleted_and_brought_back(open_chat):
    chat = open_chat()
    chat.ask("q")
    chat.press("Rename")
    chat.page.keyboard.type("My <b>chat</b>")
    chat.page.keyboard.press("Enter")
    assert chat.page.locator("#chats .chat").all_inner_texts() == ["My <b>chat</b>"]
    chat.press("New chat")
    chat.ask("r")
    assert chat.page.locator("#chats .chat").all_inner_texts() == ["r", "My <b>chat</b>"]
    chat.press("Delete")
    assert chat.page.locator("#chats .chat").all_inner_texts() == ["My <b>chat</b>"] and chat.questions() == []
    chat.press("Undo")
    assert chat.page.locator("#chats .chat").all_inner_texts() == ["r", "My <b>chat</b>"]
    chat.open()
    assert chat.page.locator("#chats .chat").all_inner_texts() == ["r", "My <b>chat</b>"]


def test_two_tabs_see_each_others_chats_and_an_answer_goes_on_behind(open_chat):
    chat = open_chat()
    chat.server.answers["slow"] = ["Slow", WAIT, "ly."]
    chat.start("slow")
    chat.press("New chat")
    assert chat.ask("quick") == "I am mini.", "another chat can ask meanwhile"
    chat.server.go()
    chat.page.locator("#chats .chat", has_text="slow").click()
    chat.see("Slowly.")
    chat.wait()  # it is kept now
    other = type(chat)(chat.page.context.new_page(), chat.server, chat.said)
    assert other.page.locator("#chats .chat").all_inner_texts() == ["slow", "quick"]
    other.ask("from the other tab")
    chat.page.locator("#chats .chat", has_text="from the other tab").wait_for()
