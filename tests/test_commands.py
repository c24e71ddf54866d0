"""The commands of a chat: what they change, and what they refuse."""

import json

import pytest
from chats import ALTERNATING, BUNDLED, TOKENIZER, TOOLS, tiny_model

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.errors import UserError
from minimind_sft.inference import chat as chat_module
from minimind_sft.inference.chat import Chat
from minimind_sft.inference.commands import chat_commands, find_command
from minimind_sft.inference.generate import SamplingSettings


@pytest.fixture
def asked(monkeypatch) -> list:
    """Collects (prompt, settings); the model answers A1, A2 and so on."""
    seen = []

    def answer(model, prompt_ids, settings, stop_ids):
        seen.append((TOKENIZER.decode(list(prompt_ids)), settings))
        yield from TOKENIZER.encode_ordinary(f"A{len(seen)}")

    monkeypatch.setattr(chat_module, "generate_stream", answer)
    return seen


def make_chat(template: ChatTemplate = BUNDLED, **more) -> Chat:
    return Chat(tiny_model(), TOKENIZER, template, SamplingSettings(16, 0.5), historys=-1, notify=lambda line: None,
                **more)


def obey(chat: Chat, message: str) -> str:
    commands = vars(chat).setdefault("commands", chat_commands(chat))
    command, argument = find_command(message, commands)
    said = command.run(argument)
    return said if isinstance(said, str) else "".join(said)


def ask(chat: Chat, *questions: str) -> None:
    for question in questions:
        list(chat.reply(question))


def contents(chat: Chat) -> list[str]:
    return [message["content"] for message in chat.messages]


@pytest.mark.parametrize("message", ["hello", "/etc/passwd", "/etc is a folder", " /undo", "/undo please", "a /undo",
                                     "/load a\nb", "//", "/1", "", "/tmp is full"])
def test_messages_for_the_model(message):
    assert find_command(message, chat_commands(make_chat())) is None


@pytest.mark.parametrize(("message", "name", "argument"), [
    ("/undo", "/undo", ""), ("/UNDO  ", "/undo", ""),
    ("/system Be brief.\nAnd kind.", "/system", "Be brief.\nAnd kind."),
    ("/temp 0.5", "/temp", "0.5"), ("/save a file.jsonl", "/save", "a file.jsonl")])
def test_commands_with_their_arguments(message, name, argument):
    command, given = find_command(message, chat_commands(make_chat()))
    assert (command.name, given) == (name, argument)


@pytest.mark.parametrize(("message", "said"), [
    ("/regn", "/regn: no such command; did you mean /regen? /help lists all, and a blank in front sends it as a "
              "message"),
    ("/sytem Be brief.", "/sytem: no such command; did you mean /system?"),
    ("/foo", "/foo: no such command. /help lists all"),
])
def test_mistyped_commands_are_not_sent(message, said):
    with pytest.raises(UserError) as error:
        find_command(message, chat_commands(make_chat()))
    assert str(error.value).startswith(said)


def test_help_fits_40_columns():
    assert max(len(f"{command.usage:<17}{command.help}") for command in chat_commands(make_chat())) <= 40


def test_regen_draws_again_and_replaces_the_answer(asked):
    chat = make_chat()
    ask(chat, "Q1", "Q2")
    assert obey(chat, "/regen") == "A3" and obey(chat, "/regen") == "A4"
    assert contents(chat) == ["Q1", "A1", "Q2", "A4"]
    assert asked[1][0] == asked[2][0] == asked[3][0]
    assert [settings.seed for _, settings in asked] == [0, 0, 1, 2]
    ask(chat, "Q3")
    assert asked[-1][1].seed == 0


def test_regen_answers_a_question_whose_answer_was_stopped(asked):
    chat = make_chat()
    ask(chat, "Q1")
    pieces = chat.reply("Q2")
    next(pieces)
    pieces.close()
    assert contents(chat) == ["Q1", "A1"]
    obey(chat, "/regen")
    assert contents(chat) == ["Q1", "A1", "Q2", "A3"]


def test_a_stopped_regen_keeps_the_answer(asked):
    chat = make_chat()
    ask(chat, "Q1")
    pieces = chat.regenerate()
    next(pieces)
    pieces.close()
    assert contents(chat) == ["Q1", "A1"] and chat.unanswered is None


def test_regen_needs_a_question():
    with pytest.raises(UserError, match="there is no question to answer again"):
        obey(make_chat(), "/regen")


def test_undo_drops_the_last_question(asked):
    chat = make_chat()
    ask(chat, "Q1", "Q2")
    assert obey(chat, "/undo") == "dropped: Q2" and contents(chat) == ["Q1", "A1"]
    assert obey(chat, "/undo") == "dropped: Q1" and contents(chat) == []
    assert obey(chat, "/undo") == "There is no question to drop."


def test_reset_keeps_the_system_turn(asked):
    for command in ("/reset", "/clear"):
        chat = make_chat(system="Be brief.")
        ask(chat, "Q1")
        assert obey(chat, command) == "The conversation starts over."
        assert (contents(chat), chat.system, chat.in_use) == ([], "Be brief.", None)


def test_the_system_turn_is_shown_set_and_removed(asked):
    chat = make_chat()
    assert obey(chat, "/system") == "There is no system turn."
    assert obey(chat, "/system Be brief.") == "system turn: Be brief."
    ask(chat, "Q1")
    assert "Be brief." in asked[-1][0]
    assert obey(chat, "/system none") == "There is no system turn."
    ask(chat, "Q2")
    assert "Be brief." not in asked[-1][0] and "Q1" in asked[-1][0]


def test_what_the_template_does_not_render_is_refused_and_changes_nothing():
    chat = make_chat(ChatTemplate(TOKENIZER, ALTERNATING))
    with pytest.raises(UserError, match=r"/system: .*roles must alternate"):
        obey(chat, "/system Be brief.")
    with pytest.raises(UserError, match=r"/thinking: .*chat template"):
        obey(chat, "/thinking on")
    assert (chat.system, chat.thinking) == (None, False)


@pytest.mark.parametrize("template", [BUNDLED, ChatTemplate(TOKENIZER, ALTERNATING)])
def test_a_tag_in_a_question_opens_no_reasoning(asked, template):
    chat = make_chat(template)
    for question in ("What is <think>", "<think>"):
        ask(chat, question)
        assert not chat.starts_thinking


def test_thinking_is_shown_and_set(asked):
    chat = make_chat()
    assert obey(chat, "/thinking") == "thinking is off"
    assert obey(chat, "/thinking on") == "thinking is on"
    ask(chat, "Q1")
    assert asked[-1][0].endswith("<think>\n") and chat.starts_thinking
    assert obey(chat, "/thinking OFF") == "thinking is off"
    ask(chat, "Q1")
    assert not chat.starts_thinking
    with pytest.raises(UserError, match="expected on or off, found 'maybe'"):
        obey(chat, "/thinking maybe")


def test_the_temperature_is_shown_and_set(asked):
    chat = make_chat()
    assert obey(chat, "/temp") == "temperature 0.5"
    assert obey(chat, "/temp 0") == "temperature 0: always the most likely token"
    ask(chat, "Q1")
    assert asked[-1][1].temperature == 0
    for wrong, said in (("hot", "expected a number, found 'hot'"), ("-1", "^temperature is -1.0, expected at least 0"),
                        ("nan", "^temperature is nan, expected a finite number")):
        with pytest.raises(UserError, match=said):
            obey(chat, f"/temp {wrong}")
    assert chat.settings.temperature == 0


def test_tokens_tells_how_full_the_context_is(asked):
    chat = make_chat()
    assert obey(chat, "/tokens") == ("0 messages; the next answer tells how many of the context's 4,096 tokens are in "
                                     "use")
    ask(chat, "Q1")
    prompt = BUNDLED.generation_prompt_ids([{"role": "user", "content": "Q1"}])
    used = len(prompt) + len(TOKENIZER.encode_ordinary("A1"))
    assert obey(chat, "/tokens") == f"2 messages; {used} of the context's 4,096 tokens in use (0%)"


def test_a_saved_conversation_is_a_training_row_and_can_be_loaded(asked, tmp_path):
    chat = make_chat(system="Be brief.", tools=TOOLS)
    ask(chat, "问题一", "Q2 <|im_end|>")
    assert obey(chat, f"/save {tmp_path / 'talk'}") == f"saved 4 messages in {tmp_path / 'talk.jsonl'}"
    (line,) = (tmp_path / "talk.jsonl").read_text(encoding="utf-8").splitlines()
    row = json.loads(line)
    assert [turn["role"] for turn in row["conversations"]] == ["system", "user", "assistant", "user", "assistant"]
    assert "问题一" in line and row["tools"] == TOOLS
    other = make_chat()
    ask(other, "something else")
    said = obey(other, f"/load {tmp_path / 'talk.jsonl'}")
    assert said == "loaded 5 messages, which end in:\n> Q2 <|im_end|>\nA2"
    assert (other.messages, other.system, other.tools) == (chat.messages, "Be brief.", TOOLS)
    ask(chat, "Q3")
    ask(other, "Q3")
    assert asked[-1][0] == asked[-2][0]


def test_save_replaces_only_what_this_chat_saved(asked, tmp_path):
    chat, path = make_chat(), tmp_path / "talk.jsonl"
    with pytest.raises(UserError, match="there is nothing to save yet"):
        obey(chat, f"/save {path}")
    path.write_text("precious")
    ask(chat, "Q1")
    with pytest.raises(UserError, match=r"talk.jsonl: the file exists and was not saved in this chat"):
        obey(chat, f"/save {path}")
    assert path.read_text() == "precious"
    obey(chat, f"/save {tmp_path / 'mine.jsonl'}")
    ask(chat, "Q2")
    assert obey(chat, f"/save {tmp_path / 'mine.jsonl'}").startswith("saved 4 messages")
    with pytest.raises(UserError, match="cannot be written"):
        obey(chat, f"/save {tmp_path / 'nowhere' / 'talk.jsonl'}")
    for no_name in ("", " /", " ''", " .", ' "'):
        for command in ("/save", "/load"):
            with pytest.raises(UserError, match="expected the name of a file"):
                obey(chat, command + no_name)
    for command in ("/save", "/load"):
        with pytest.raises(UserError, match=r"~nobody-of-this-name/talk.jsonl: cannot be"):
            obey(chat, f"{command} ~nobody-of-this-name/talk")


def test_an_empty_answer_is_saved_as_one_that_is_not_learned(monkeypatch, tmp_path):
    monkeypatch.setattr(chat_module, "generate_stream", lambda *arguments: iter(()))
    chat = make_chat()
    ask(chat, "Q1")
    obey(chat, f"/save {tmp_path / 'talk.jsonl'}")
    assert json.loads((tmp_path / "talk.jsonl").read_text())["conversations"][1]["train"] is False
    obey(make_chat(), f"/load {tmp_path / 'talk.jsonl'}")


ROWS = [{"messages": [{"role": "user", "content": "Q1"}, {"role": "assistant", "content": "R1"}]},
        {"instruction": "Q2", "output": "R2"}]


def test_a_row_of_several_is_loaded_by_its_line(asked, tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    chat = make_chat()
    ask(chat, "before")
    for wrong, said in ((f"{path}", r"expected one conversation \(.*data.jsonl:LINE chooses it\), found 2"),
                        (f"{path}:3", "expected a conversation in line 3, found 0"),
                        (f"{tmp_path / 'nothing.jsonl'}", "nothing.jsonl"), ("", "expected the name of a file")):
        with pytest.raises(UserError, match=said):
            obey(chat, f"/load {wrong}")
    assert contents(chat) == ["before", "A1"]
    obey(chat, f"/load {path}:2")
    assert contents(chat) == ["Q2", "R2"]
    assert obey(chat, "/regen") == "A2" and contents(chat) == ["Q2", "A2"]


def test_a_conversation_whose_last_message_waits_is_answered_by_regen(asked, tmp_path):
    call = {"role": "assistant", "content": "", "tool_calls": [{"name": "weather", "arguments": {"city": "罗马"}}]}
    row = {"messages": [{"role": "user", "content": "Q1"}, call, {"role": "tool", "content": "sunny"}], "tools": TOOLS}
    (tmp_path / "row.jsonl").write_text(json.dumps(row))
    chat = make_chat()
    obey(chat, f"/load {tmp_path / 'row.jsonl'}")
    assert obey(chat, "/regen") == "A1"
    assert "sunny" in asked[0][0] and [message["role"] for message in chat.messages] == ["user", "assistant", "tool",
                                                                                       "assistant"]
    ask(chat, "Q2")
    assert "sunny" in asked[1][0]
    assert obey(chat, "/undo") == "dropped: Q2" and obey(chat, "/undo") == "dropped: Q1" and chat.messages == []
