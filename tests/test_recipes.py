"""The two recipes repeat each other on purpose (docs/architecture.md); the shared part must stay alike."""

from pathlib import Path

RECIPES = Path(__file__).resolve().parent.parent / "trainer"
SHARED_FROM = "    # Model and output files come before the data"


def test_the_recipes_differ_only_in_stage_and_template():
    pretrain, fine_tune = ((RECIPES / name).read_text(encoding="utf-8").partition(SHARED_FROM)[2]
                           for name in ("train_pretrain.py", "train_full_sft.py"))
    assert pretrain
    for own, other in (('"pretrain"', '"full_sft"'),
                       ("(settings, start, tokenizer, None, ranks)", "(settings, start, tokenizer, template, ranks)"),
                       ("encoding_facts(tokenizer)", "encoding_facts(tokenizer, template, data.chat_template)")):
        assert own in pretrain
        pretrain = pretrain.replace(own, other)
    assert pretrain.splitlines() == fine_tune.splitlines()
