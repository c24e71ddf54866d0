"""The chat page in Chromium: answers that stream, stop, come again; versions, calls, and servers that fail."""

import json

import pytest
from fake_chat_server import DIE, ENDLESS, WAIT
from programs import PATIENCE

pytestmark = pytest.mark.slow


def test_an_answer_streams_and_the_conversation_stays_in_the_browser(open_chat):
    chat = open_chat()
    chat.server.answers["q"] = ["Half of ", WAIT, "an **answer**."]
    chat.start("q")
    chat.see("Half of")
    assert chat.page.locator("#send").inner_text() == "Stop"
    assert chat.page.locator(".answer").get_attribute("aria-busy") == "true"
    assert chat.page.locator("#announce").inner_text() == "The model is answering."
    chat.server.go()
    chat.wait()
    assert chat.answers() == ["Half of an answer."] and chat.page.locator(".content strong").inner_text() == "answer"
    assert chat.page.locator("#announce").inner_text() == "The answer: Half of an **answer**."
    assert chat.page.locator(".figures .tokens").inner_text() == "3 tokens"
    body = chat.server.bodies[0]
    assert isinstance(body.pop("seed"), int)
    assert body == {"model": "mini", "messages": [{"role": "user", "content": "q"}], "stream": True,
                    "stream_options": {"include_usage": True}}
    assert chat.ask("who?") == "I am mini."
    assert [message["content"] for message in chat.sent()] == ["q", "Half of an **answer**.", "who?"]

    chat.open()
    assert chat.page.locator("#chats .chat").all_inner_texts() == ["q"] and chat.answers() == []
    chat.page.locator("#chats .chat").click()
    assert chat.questions() == ["q", "who?"] and chat.answers() == ["Half of an answer.", "I am mini."]


def test_stopping_keeps_what_came_and_lets_the_server_go(open_chat):
    chat = open_chat()
    chat.server.answers["q"] = ["Some ", WAIT, ENDLESS]
    chat.start("q")
    chat.see("Some")
    chat.page.keyboard.press("Escape")
    chat.see("Stopped.")
    chat.server.go()
    assert chat.server.left.wait(PATIENCE), "the server can stop as well"
    assert chat.answers() == ["Some"] and chat.page.locator("#send").inner_text() == "Send"
    chat.ask("go on")
    assert [message["content"] for message in chat.sent()] == ["q", "Some ", "go on"]


def test_an_answer_can_be_had_again_and_a_question_edited(open_chat):
    chat = open_chat()
    chat.server.answers |= {"q": ["one"], "new": ["two"]}
    chat.ask("q")
    chat.server.answers["q"] = ["another"]
    chat.press("Answer again")
    chat.see("another")
    chat.wait()
    assert chat.page.locator(".version").inner_text() == "2 of 2"
    chat.press("Previous version")
    assert chat.answers() == ["one"]
    chat.ask("more")
    assert [message["content"] for message in chat.sent()] == ["q", "one", "more"], "the chosen version"

    chat.press("Edit", 0)
    chat.page.locator(".editor textarea").fill("new")
    chat.page.keyboard.press("Enter")
    chat.see("two")
    chat.wait()
    assert chat.questions() == ["new"] and chat.sent() == [{"role": "user", "content": "new"}]
    chat.press("Previous version")
    assert chat.questions() == ["q", "more"] and chat.answers() == ["one", "I am mini."], "nothing is lost"
    chat.press("Next version")
    assert chat.questions() == ["new"]

    chat.press("Edit")
    chat.page.keyboard.press("Escape")
    assert chat.questions() == ["new"] and len(chat.server.bodies) == 4


def test_thoughts_are_folded(open_chat):
    chat = open_chat()
    chat.server.answers["q"] = [{"reasoning_content": "It asks "}, {"reasoning_content": "for 3."}, WAIT, "3"]
    chat.page.check("#think")
    chat.start("q")
    chat.see("Thinking …")
    assert not chat.page.locator(".thoughts-text").is_visible()
    chat.server.go()
    chat.wait()
    chat.page.get_by_text("Thoughts").click()
    assert chat.page.locator(".thoughts-text").inner_text() == "It asks for 3."
    assert chat.answers() == ["3"] and chat.server.bodies[0]["open_thinking"] is True
    chat.ask("r")
    assert chat.sent()[1] == {"role": "assistant", "content": "3", "reasoning_content": "It asks for 3."}


def test_calls_are_shown_and_their_results_sent(open_chat):
    chat = open_chat()
    tools = [{"type": "function", "function": {"name": "weather", "parameters": {}}}]
    pieces = [{"index": 0, "id": "c1", "function": {"name": "weather", "arguments": ""}},
              {"index": 0, "function": {"arguments": '{"city": "Pa'}}, {"index": 0, "function": {"arguments": 'ris"}'}}]
    chat.server.answers |= {"q": ["Look:", *({"tool_calls": [piece]} for piece in pieces)], "sunny": ["It is sunny."]}
    chat.press("Settings")
    chat.page.get_by_label("Tools (JSON)").fill('{"no": "list"}')
    chat.press("Close")
    assert chat.page.get_by_text("Expected a JSON list of functions").is_visible(), "and the dialog stays open"
    chat.page.get_by_label("Tools (JSON)").fill(json.dumps(tools))
    chat.page.get_by_label("System prompt").fill("Be brief.")
    chat.press("Close")
    chat.ask("q")
    assert chat.server.bodies[0]["tools"] == tools
    assert json.loads(chat.page.locator(".call pre").inner_text()) == {"city": "Paris"}
    chat.page.get_by_label("Result of weather").fill("sunny")
    chat.press("Send the results")
    chat.see("It is sunny.")
    assert chat.sent() == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "q"},
        {"role": "assistant", "content": "Look:", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Paris"}'}}]},
        {"role": "tool", "tool_call_id": "c1", "name": "weather", "content": "sunny"}]
    assert chat.page.locator(".result pre").inner_text() == "sunny"
    chat.ask("r")
    chat.press("Answer again", 1)
    chat.page.locator(".results .version").wait_for()
    chat.wait()
    assert chat.questions() == ["q"]
    chat.press("Previous version")
    assert chat.questions() == ["q", "r"], "nothing is lost"


def test_a_call_that_was_cut_off_is_shown_and_not_sent_back(open_chat):
    """Servers refuse a conversation with arguments that are not JSON, and so does training."""
    chat = open_chat()
    cut = [{"index": 0, "id": "c1", "function": {"name": "weather", "arguments": '{"city": "Pa'}}]
    whole = [{"index": 0, "id": "c2", "function": {"name": "time", "arguments": "{}"}}]
    after = [{"index": 1, "id": "c3", "function": {"name": "weather", "arguments": "{"}}]
    chat.server.answers |= {"q": [{"tool_calls": cut}, WAIT], "r": ["yes"],
                            "s": ["Look:", {"tool_calls": whole}, {"tool_calls": after}], "noon": ["It is noon."]}
    chat.start("q")
    chat.page.locator(".call").wait_for()
    chat.press("Stop")
    chat.ask("r")
    chat.server.go()
    assert chat.sent() == [{"role": "user", "content": "r"}]
    chat.ask("s")
    assert chat.page.locator(".call").count() == 3 and chat.page.get_by_label("Result of weather").count() == 0
    chat.page.get_by_label("Result of time").fill("noon")
    chat.press("Send the results")
    chat.see("It is noon.")
    assert [message.get("tool_calls") for message in chat.sent()] == [None, None, None, [
        {"id": "c2", "type": "function", "function": {"name": "time", "arguments": "{}"}}], None]
    row = json.loads(chat.save("Save this chat (JSONL)"))
    calls = [call["function"] for message in row["conversations"] for call in message.get("tool_calls", [])]
    assert calls == [{"name": "time", "arguments": {}}] and len(row["conversations"]) == 6


def test_a_server_that_dies_in_an_answer_loses_nothing(open_chat):
    chat = open_chat()
    chat.server.answers["q"] = ["So far ", DIE]
    chat.ask("q")
    assert chat.answers() == ["So far"]
    assert chat.page.locator(".state").inner_text() == "The connection broke in the middle. What came so far is kept."
    chat.server.answers["q"] = ["So far and on."]
    chat.press("Try again")
    chat.see("So far and on.")
    assert chat.page.locator(".version").inner_text() == "2 of 2"
    chat.page.route("**/v1/**", lambda route: route.abort())
    chat.ask("r")
    assert chat.page.locator(".state").last.inner_text() == "The server does not answer."
    chat.page.unroute("**/v1/**")
    chat.press("Try again")
    chat.see("I am mini.")
    assert [message["content"] for message in chat.sent()] == ["q", "So far and on.", "r"]


def test_what_a_server_says_is_shown_as_it_is(open_chat):
    chat = open_chat()
    chat.server.answers |= {"bad": (400, "<b>messages[0]</b> is too long", {}), "busy": (429, "", {"Retry-After": "7"}),
                            "late": ["Begun ", {"error": {"message": "the model made NaN"}}]}
    states = []
    for question in chat.server.answers:
        chat.ask(question)
        states.append(chat.page.locator(".state").last.inner_text())
    assert states == ["The server says: <b>messages[0]</b> is too long", "The server is busy; try again in 7 s.",
                      "The server says: the model made NaN"]
    assert chat.answers()[-1] == "Begun"
    assert chat.page.locator("#announce").inner_text() == "The answer: Begun The server says: the model made NaN"


def test_thoughts_without_an_answer_are_no_riddle(open_chat):
    chat = open_chat()
    chat.server.answers["q"] = [{"reasoning_content": "Hm."}]
    chat.ask("q")
    assert chat.page.locator(".state").inner_text() == "The model thought and ended without an answer."


def test_models_that_cannot_chat_are_not_offered(open_chat, chat_server):
    chat = open_chat()
    chat_server.facts = {"mini": {"endpoints": ["/v1/chat/completions", "/v1/completions"]},
                         "style": {"endpoints": ["/v1/completions"]}}
    chat.page.reload()
    chat.page.locator("#model option[value=mini]").wait_for(state="attached")
    assert chat.page.locator("#model option").all_inner_texts() == ["mini"]
    chat_server.models = ["style"]
    chat.page.reload()
    chat.page.locator("#model option[value=style]").wait_for(state="attached")  # asked, the server says why


def test_a_key_is_asked_for_and_forgotten_with_the_tab(open_chat, chat_server):
    chat_server.key, chat_server.models = "secret", []
    chat = open_chat()
    chat.see("The server wants an API key.")
    chat_server.models = ["mini"]
    chat.press("Enter the key")
    assert chat.page.evaluate("document.activeElement.type") == "password"
    chat.page.keyboard.type("secret")
    chat.page.keyboard.press("Enter")
    chat.page.locator("#model option[value=mini]").wait_for(state="attached")
    assert chat.ask("q") == "I am mini."
    assert "secret" not in chat.page.evaluate("JSON.stringify({...localStorage})")


def test_a_server_that_comes_back_is_found_with_its_models(open_chat, chat_server):
    chat = open_chat()
    chat.page.clock.install()
    chat.open()
    chat.page.route("**/v1/**", lambda route: route.abort())
    chat.ask("q")
    chat.see("The server does not answer.")
    chat_server.models = ["trained"]
    chat.page.unroute("**/v1/**")
    chat.page.clock.fast_forward(3000)
    chat.page.locator("#model option[value=trained]").wait_for(state="attached")
    chat.press("Try again")
    chat.see("I am trained.")


def test_what_the_browser_kept_may_be_anything(open_chat):
    chat = open_chat()
    chat.ask("q")
    chat.page.evaluate("""() => {
      const [name] = Object.keys(localStorage).filter(one => one.startsWith("minimind-chat:"));
      const good = JSON.parse(localStorage.getItem(name));
      const bad = [null, [], 3, {}, { ...good, turns: [null] }, { ...good, turns: [{ content: "x", answers: [] }] },
                   { ...good, turns: [{ ...good.turns[0], chosen: 7 }] }, { ...good, title: 3 }];
      bad.forEach((value, at) => localStorage.setItem(`minimind-chat:${at}`, JSON.stringify(value)));
      localStorage.setItem("minimind-chat:x", "{");
      localStorage.setItem("minimind-preferences", '{"sampling": null, "language": 3, "theme": "dark"}');
    }""")
    chat.open()
    assert chat.page.locator("#chats .chat").all_inner_texts() == ["q"]
    assert chat.page.locator("html").get_attribute("data-theme") == "dark"
    assert chat.ask("r") == "I am mini."
