"""A row becomes samples of at most the maximum length, and is counted."""

from importlib.resources import files

import numpy as np
import pytest
from chats import BUNDLED, TOKENIZER

from minimind_sft.data import samples
from minimind_sft.data.chat_template import ChatTemplate, Supervision, make_template
from minimind_sft.data.conversation import parse_conversation
from minimind_sft.data.dataset import DatasetCounts, ExampleDataset
from minimind_sft.data.example import make_example
from minimind_sft.data.samples import EncodedRow, PretrainEncoder, SFTEncoder
from minimind_sft.errors import UserError
from minimind_sft.labels import IGNORE_INDEX


def conversation(*turns: str) -> dict:
    """Returns a row of alternating user and assistant turns."""
    roles = ("user", "assistant")
    return {"conversations": [{"role": roles[i % 2], "content": text} for i, text in enumerate(turns)]}


def encode(encoder, *rows: dict) -> tuple[ExampleDataset, DatasetCounts]:
    """Returns the samples and counts of the rows, whose places are file:1, file:2, ..."""
    placed = [(f"file:{line}", row) for line, row in enumerate(rows, start=1)]
    counts, samples = DatasetCounts(), []
    for (place, _), encoded in zip(placed, encoder.encode(placed), strict=True):
        counts.add(place, encoded)
        samples += encoded.samples if isinstance(encoded, EncodedRow) else []
    return ExampleDataset(samples), counts


def taught(dataset: ExampleDataset, index: int = 0) -> list[str]:
    """Returns the text of the labels of each Example of a sample."""
    return [TOKENIZER.decode(example.labels[example.labels != IGNORE_INDEX].tolist()) for example in dataset[index]]


def seen(dataset: ExampleDataset, index: int = 0) -> list[str]:
    return [TOKENIZER.decode(example.input_ids.tolist()) for example in dataset[index]]


def test_labels_are_the_supervised_next_tokens():
    example = make_example([10, 11, 12, 13], [True, False, True, True])
    assert example.input_ids.tolist() == [10, 11, 12]
    assert example.labels.tolist() == [IGNORE_INDEX, 12, 13]


def test_the_labels_of_a_conversation_are_the_answer_and_its_end_of_turn():
    dataset, _ = encode(SFTEncoder(BUNDLED, 100), conversation("Hi", "Hello!"))
    (example,) = dataset[0]
    assert TOKENIZER.decode(example.input_ids.tolist()) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nHello!<|im_end|>")
    assert TOKENIZER.decode([label for label in example.labels.tolist() if label != IGNORE_INDEX]) == "Hello!<|im_end|>"
    # The position before the answer predicts its first token.
    first = int(np.flatnonzero(example.labels != IGNORE_INDEX)[0])
    assert TOKENIZER.decode(example.input_ids[first:first + 1].tolist()) == "\n\n"


def test_a_long_conversation_is_cut_at_the_end_without_an_end_of_turn():
    long = conversation("Hi", "one two three four five six seven eight nine ten")
    dataset, counts = encode(SFTEncoder(BUNDLED, 20), long)
    (example,) = dataset[0]
    assert len(example.input_ids) == 19  # 20 tokens, shifted
    assert TOKENIZER.token_to_id("<|im_end|>") not in example.labels
    assert counts.truncated == 1


def test_rows_without_a_supervised_token_are_dropped_and_named():
    rows = (conversation("Hi", "Hello!"), conversation("a " * 50, "too late"), conversation("Hi", "Yes."))
    dataset, counts = encode(SFTEncoder(BUNDLED, 30), *rows)
    assert len(dataset) == 2
    assert counts.dropped == ["file:2"]
    assert counts.rows == 3
    assert "2 of 3 rows" in counts.summary()
    assert "1 dropped, nothing left to learn within max_seq_len (file:2)" in counts.summary()


def test_running_text_ends_with_the_end_of_document():
    dataset, _ = encode(PretrainEncoder(TOKENIZER, 100), {"text": "Hello"})
    ids = [*TOKENIZER.encode("Hello"), 0]
    assert dataset[0][0].input_ids.tolist() == ids[:-1]
    assert dataset[0][0].labels.tolist() == ids[1:]


def test_every_token_of_a_chunked_text_but_the_first_is_predicted_once():
    text = "The rain in Spain stays mainly in the plain. " * 5
    ids = [*TOKENIZER.encode(text), 0]
    dataset, _ = encode(PretrainEncoder(TOKENIZER, 8), {"text": text})
    assert len(dataset) == -(-(len(ids) - 1) // 7)
    assert all(len(dataset[i][0].input_ids) <= 7 for i in range(len(dataset)))
    assert [int(label) for i in range(len(dataset)) for label in dataset[i][0].labels] == ids[1:]


def test_control_tokens_in_pretraining_text_stay_text():
    dataset, _ = encode(PretrainEncoder(TOKENIZER, 100), {"text": "a <|im_end|> b<|endoftext|>"})
    ids = dataset[0][0].input_ids.tolist()
    assert not set(ids) & {0, 1, 2}
    assert TOKENIZER.decode(ids) == "a <|im_end|> b<|endoftext|>"


def test_empty_texts_are_dropped():
    dataset, counts = encode(PretrainEncoder(TOKENIZER, 100), {"text": ""}, {"text": "b c"})
    assert len(dataset) == 1 and counts.dropped == ["file:1"]


TURNS = conversation("Hi", "Hello!", "one two three four five six seven eight nine ten", "eleven twelve", "Bye", "Ciao")


def test_truncation_by_turns_keeps_the_longest_fitting_run_of_turns(monkeypatch):
    system = {"role": "system", "content": "kind"}
    row = {"conversations": [system, *TURNS["conversations"]]}
    whole, counts = encode(SFTEncoder(BUNDLED, 1000, "turns"), row)
    assert taught(whole) == ["Hello!<|im_end|>eleven twelve<|im_end|>Ciao<|im_end|>"] and counts.truncated == 0
    length = whole.lengths(0)[0] + 1
    for max_seq_len, expected in ((length - 1, "Hello!<|im_end|>eleven twelve<|im_end|>"), (25, "Hello!<|im_end|>")):
        kept, counts = encode(SFTEncoder(BUNDLED, max_seq_len, "turns"), row)
        assert taught(kept) == [expected]
        assert seen(kept)[0].startswith("<|im_start|>system\nkind<|im_end|>\n<|im_start|>user\n")
        assert kept.lengths(0)[0] < max_seq_len and counts.truncated == 1
    nothing, counts = encode(SFTEncoder(BUNDLED, 10, "turns"), row)
    assert len(nothing) == 0 and counts.dropped == ["file:1"] and counts.truncated == 0


@pytest.mark.parametrize("max_seq_len", range(8, 90, 3))
def test_the_kept_run_of_turns_is_the_longest_of_all(max_seq_len):
    """Compared with all possible runs."""
    texts = ["a", "b " * 9, "c", "d", "e " * 12, "f", "g", "h " * 3, "i", "j"]
    messages = conversation(*texts)["conversations"]
    messages.insert(4, {"role": "tool", "content": "t"})
    messages.insert(5, {"role": "assistant", "content": "u"})
    runs = {}
    for start, first in enumerate(messages):
        for end in range(start + 2, len(messages) + 1):
            if first["role"] == "user" and messages[end - 1]["role"] == "assistant":
                (whole,), _ = encode(SFTEncoder(BUNDLED, 10_000), {"conversations": messages[start:end]})
                if len(whole[0].input_ids) + 1 <= max_seq_len:
                    runs[-(end - start), start] = whole[0].input_ids.tolist()
    kept, _ = encode(SFTEncoder(BUNDLED, max_seq_len, "turns"), {"conversations": messages})
    assert [example.input_ids.tolist() for sample in kept for example in sample] == (
        [runs[min(runs)]] if runs else [])


def test_truncation_drop_drops_conversations_that_are_too_long():
    dataset, counts = encode(SFTEncoder(BUNDLED, 30, "drop"), conversation("Hi", "Hello!"), TURNS)
    assert len(dataset) == 1 and counts.dropped == ["file:2"] and counts.truncated == 0


@pytest.mark.parametrize("policy", ["tail", "turns", "drop"])
@pytest.mark.parametrize("max_seq_len", range(3, 80, 4))
def test_no_truncation_adds_an_end_of_turn(policy, max_seq_len):
    dataset, counts = encode(SFTEncoder(BUNDLED, max_seq_len, policy), TURNS)
    whole = "Hello!<|im_end|>eleven twelve<|im_end|>Ciao<|im_end|>"
    assert counts.dropped_rows == 1 - len(dataset)
    for sample in range(len(dataset)):
        (text,) = taught(dataset, sample)
        assert dataset.lengths(sample)[0] <= max_seq_len - 1
        assert whole.startswith(text) or (policy == "turns" and text in whole and text.endswith("<|im_end|>"))


def test_supervision_may_cover_the_last_turn_or_the_prompt():
    last, _ = encode(SFTEncoder(BUNDLED, 1000, supervision=Supervision("last")), TURNS)
    assert taught(last) == ["Ciao<|im_end|>"]
    prompt, _ = encode(SFTEncoder(BUNDLED, 1000, supervision=Supervision(prompt=True)), TURNS)
    (example,) = prompt[0]
    assert (example.labels[:-1] == example.input_ids[1:]).all()


def test_an_untrained_turn_stays_in_the_input():
    row = conversation("Hi", "Hello!", "Bye", "Ciao")
    row["conversations"][1]["train"] = False
    flagged, _ = encode(SFTEncoder(BUNDLED, 1000), row)
    whole, _ = encode(SFTEncoder(BUNDLED, 1000), conversation("Hi", "Hello!", "Bye", "Ciao"))
    assert taught(flagged) == ["Ciao<|im_end|>"]
    assert (flagged[0][0].input_ids == whole[0][0].input_ids).all()


def test_every_token_of_text_among_conversations_is_learned():
    dataset, counts = encode(SFTEncoder(BUNDLED, 100), {"text": "Hello"}, conversation("Hi", "Hello!"))
    alone, _ = encode(PretrainEncoder(TOKENIZER, 100), {"text": "Hello"})
    assert dataset[0][0].labels.tolist() == alone[0][0].labels.tolist()
    assert taught(dataset, 1) == ["Hello!<|im_end|>"] and counts.rows == 2


def test_bad_rows_are_counted_and_the_others_are_encoded():
    rows = [conversation("Hi", "Hello!"), {"conversations": [{"role": "robot", "content": "x"}]}, {"text": 5},
            conversation("Hi", "Yes.")]
    dataset, counts = encode(SFTEncoder(BUNDLED, 100), *rows)
    assert [taught(dataset, i) for i in range(2)] == [["Hello!<|im_end|>"], ["Yes.<|im_end|>"]]
    assert counts.rows == 4 and counts.bad == [
        'file:2: conversations[0].role: expected system, user, assistant or tool, found "robot"',
        "file:3: text: expected a string, found 5"]
    _, counts = encode(PretrainEncoder(TOKENIZER, 100), {"text": "a"}, rows[0])
    assert counts.bad == ["file:2: text: expected a string, found a row with conversations"]


def test_encoder_settings_cover_everything_that_changes_samples():
    encoders = [SFTEncoder(BUNDLED, 100), SFTEncoder(BUNDLED, 101), SFTEncoder(BUNDLED, 100, "turns"),
                SFTEncoder(BUNDLED, 100, supervision=Supervision("last")), PretrainEncoder(TOKENIZER, 100),
                SFTEncoder(BUNDLED, 100, supervision=Supervision(prompt=True)),
                SFTEncoder(make_template(TOKENIZER, "alpaca"), 100)]
    assert len({str(encoder.settings) for encoder in encoders}) == len(encoders)


def test_a_long_text_is_tokenized_in_parts_without_loss(monkeypatch):
    monkeypatch.setattr(samples, "MAX_CHARACTERS", 40)
    text = "The rain in Spain stays mainly in the plain.\n" * 5 + "x" * 100 + " y"
    assert "".join(samples.text_parts(text)) == text
    assert max(map(len, samples.text_parts(text))) == 40 and list(samples.text_parts(""))  == []
    dataset, _ = encode(PretrainEncoder(TOKENIZER, 1000), {"text": text})
    assert taught(dataset)[0] == text.removeprefix("The") + "<|endoftext|>"  # the first token is not predicted


def test_a_refusal_while_truncating_is_a_bad_row(monkeypatch):
    def refuse(*_):
        raise UserError("file:1: the chat template refuses the conversation: no")

    monkeypatch.setattr(samples, "longest_run_of_turns", refuse)
    dataset, counts = encode(SFTEncoder(BUNDLED, 30, "turns"), TURNS, conversation("Hi", "Hello!"))
    assert len(dataset) == 1 and counts.bad == ["file:1: the chat template refuses the conversation: no"]


def test_text_with_all_private_use_characters_is_a_bad_row():
    text = "".join(map(chr, range(0xF0000, 0xFFFFE)))
    for encoder in (SFTEncoder(BUNDLED, 100), PretrainEncoder(TOKENIZER, 100)):
        _, counts = encode(encoder, {"text": text}, {"text": "a"})
        assert counts.bad_rows == 1 and counts.bad[0].startswith("file:1: text: the text uses up the private-use")


def test_the_last_turn_is_that_of_the_whole_conversation_after_truncation():
    last = Supervision("last")
    short, _ = encode(SFTEncoder(BUNDLED, 30, "turns", last), TURNS)
    assert taught(short) == ["Ciao<|im_end|>"]
    long_end = conversation("Hi", "Hello!", "Bye", "one two three four five six seven eight nine ten eleven")
    _, counts = encode(SFTEncoder(BUNDLED, 20, "turns", last), long_end)
    assert counts.dropped == ["file:1"]


def test_a_run_of_untrained_turns_is_not_kept():
    row = conversation("a", "b", "c", "d", "e " * 8, "f")
    for index in (1, 3):
        row["conversations"][index]["train"] = False
    kept, _ = encode(SFTEncoder(BUNDLED, 40, "turns"), row)
    assert taught(kept) == ["f<|im_end|>"]


def test_a_row_of_several_sequences_fits_only_if_all_sequences_fit():
    """A template that drops earlier reasoning makes a sequence of each turn."""
    pytest.importorskip("trl")
    source = (files("trl") / "chat_templates/qwen3.jinja").read_text(encoding="utf-8")
    template = ChatTemplate(TOKENIZER, source)
    row = conversation("Hi", "Hello!", "Bye", "Ciao")
    row["conversations"][1]["reasoning_content"] = "one two three four five six seven eight nine ten"
    whole, _ = encode(SFTEncoder(template, 1000), row)
    first, second = whole.lengths(0)
    assert first > second > 10
    dataset, counts = encode(SFTEncoder(template, first, "drop"), row)
    assert len(dataset) == 0 and counts.dropped_rows == 1
    dataset, counts = encode(SFTEncoder(template, first, "tail"), row)
    assert counts.truncated == 1 and dataset.lengths(0) == [first - 1, second]


FORMATS = {
    "minimind": {"conversations": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
                                   {"role": "assistant", "content": "b"}, {"role": "user", "content": "c\n1"},
                                   {"role": "assistant", "content": "d"}]},
    "openai": {"messages": [{"role": "developer", "content": "s"}, {"role": "user", "content": "a"},
                            {"role": "assistant", "content": "b"},
                            {"role": "user",
                             "content": [{"type": "text", "text": "c\n"}, {"type": "text", "text": "1"}]},
                            {"role": "assistant", "content": "d"}]},
    "sharegpt": {"conversations": [{"from": "system", "value": "s"}, {"from": "human", "value": "a"},
                                   {"from": "gpt", "value": "b"}, {"from": "human", "value": "c\n1"},
                                   {"from": "gpt", "value": "d"}]},
    "alpaca": {"instruction": "c", "input": "1", "output": "d", "system": "s", "history": [["a", "b"]]},
    "prompt": {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "a"},
                          {"role": "assistant", "content": "b", "train": True}, {"role": "user", "content": "c\n1"}],
               "completion": "d"},
}


@pytest.mark.parametrize("choice", ["chatml", "alpaca"])
def test_a_conversation_gives_the_same_sample_in_every_format(choice):
    template = make_template(TOKENIZER, choice)
    dataset, counts = encode(SFTEncoder(template, 1000), *FORMATS.values())
    assert counts.bad == [] and len(dataset) == len(FORMATS)
    examples = [(one.input_ids.tolist(), one.labels.tolist()) for sample in dataset for one in sample]
    assert all(example == examples[0] for example in examples)
    for row in FORMATS.values():
        assert template.prompt_mismatches(parse_conversation(row, "a:1")) == []
