"""Two models side by side, votes, and chats saved as training data."""

import json
from pathlib import Path

import pytest
from chats import BUNDLED

from minimind_sft.data.conversation import canonical_row, parse_conversation
from minimind_sft.data.reading import read_rows
from minimind_sft.data.samples import SFTEncoder
from minimind_sft.labels import IGNORE_INDEX

pytestmark = pytest.mark.slow

TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]


def test_two_models_answer_side_by_side_and_a_vote_decides(open_chat):
    chat = open_chat()
    chat.page.check("#compare")
    chat.start("q")
    chat.page.locator(".vote").first.wait_for()
    names = [body["model"] for body in chat.server.bodies]
    assert sorted(names) == ["mini", "style"]
    assert chat.page.locator(".who").all_inner_texts() == ["Answer A", "Answer B"], "the names stay hidden"
    assert sorted(chat.answers()) == ["I am mini.", "I am style."]
    chat.press("B is better")
    second = chat.answers()[1]
    shown = {"I am mini.": "mini", "I am style.": "style"}
    assert chat.page.locator(".who").all_inner_texts()[1] == f"Answer B · {shown[second]}"
    chat.page.uncheck("#compare")
    chat.ask("r")
    assert chat.sent()[1]["content"] == second, "the conversation goes on from the better answer"

    chat.press("New chat")
    chat.page.check("#compare")
    chat.start("s")
    chat.page.locator(".vote").first.wait_for()
    chat.press("Equally good")
    chat.press("Votes")
    tally = dict(zip(chat.page.locator(".tally dt").all_inner_texts(), chat.page.locator(".tally dd").all_inner_texts(),
                     strict=True))
    loser = ({"mini", "style"} - {shown[second]}).pop()
    assert tally == {f"{shown[second]} wins": "1", f"{loser} wins": "0", "Ties": "1", "Both bad": "0"}
    votes = json.loads(chat.save("Save all votes (JSON)"))
    assert [vote["vote"] for vote in votes["votes"]] == ["tie", "b"] and votes["tally"][0]["ties"] == 1
    [row] = map(json.loads, chat.save("Save as preference rows (JSONL)").splitlines())
    assert row == {"prompt": [{"role": "user", "content": "q"}], "chosen": [{"role": "assistant", "content": second}],
                   "rejected": [{"role": "assistant", "content": f"I am {loser}."}],
                   "chosen_model": shown[second], "rejected_model": loser}


def test_saved_chats_are_training_data(open_chat, tmp_path):
    chat = open_chat()
    call = {"index": 0, "id": "c1", "function": {"name": "look", "arguments": '{"at": 3}'}}
    chat.server.answers |= {"call": ["Hm: ", {"reasoning_content": "I look."}, {"tool_calls": [call]}], "3": ["Three."],
                            "long": ["Cut ", {"content": "off", "finish": "length"}], "bad": (400, "no", {})}
    chat.press("Settings")
    chat.page.get_by_label("System prompt").fill("你很\n简洁。")
    chat.page.get_by_label("Tools (JSON)").fill(json.dumps(TOOLS))
    chat.press("Close")
    chat.ask("call")
    chat.page.get_by_label("Result of look").fill("3")
    chat.press("Send the results")
    chat.see("Three.")
    for question in ("long", "bad", "q", "long"):
        chat.ask(question)
    file = Path(tmp_path, "chat.jsonl")
    file.write_text(chat.save("Save this chat (JSONL)"), encoding="utf-8")
    chat.see("Saved 1 row. Train with --data_path on the file.")

    [(place, row)] = read_rows(file)
    conversation = parse_conversation(row, place)
    assert canonical_row(conversation) == {"conversations": [
        {"role": "system", "content": "你很\n简洁。"}, {"role": "user", "content": "call"},
        {"role": "assistant", "content": "Hm: ", "reasoning_content": "I look.", "tool_calls": [
            {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": 3}}}]},
        {"role": "tool", "content": "3", "name": "look", "tool_call_id": "c1"},
        {"role": "assistant", "content": "Three."},
        {"role": "user", "content": "long"}, {"role": "assistant", "content": "Cut off", "train": False},
        {"role": "user", "content": "q"}, {"role": "assistant", "content": "I am mini."}],
        "tools": TOOLS}
    [encoded] = SFTEncoder(BUNDLED, 1000).encode([(place, row)])
    learned = [BUNDLED.tokenizer.decode([label for label in example.labels if label != IGNORE_INDEX])
               for sample in encoded.samples for example in sample]
    text = "".join(learned)
    assert "I look." in text and "Three." in text and "I am mini." in text and "Cut" not in text
