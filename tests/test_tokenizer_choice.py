"""The tokenizer that --tokenizer_path asks for."""

from chats import MODEL
from chats import TOKENIZER as BUNDLED

from minimind_sft.data.tokenizer_choice import load_tokenizer, tokenizer_name


def test_the_bundled_tokenizer_is_recognised_under_several_names(monkeypatch):
    monkeypatch.chdir(MODEL.parent / "trainer")
    for choice in (None, "bundled", "../model", str(MODEL)):
        assert tokenizer_name(choice) == "bundled"
        assert load_tokenizer(choice).fingerprint == BUNDLED.fingerprint
    assert tokenizer_name("model") == "model", "trainer/ has no folder of this name, so it is not the bundled one"
