"""The recipes repeat each other on purpose (docs/architecture.md); the shared parts must stay alike."""

from pathlib import Path

RECIPES = Path(__file__).resolve().parent.parent / "trainer"
SHARED_FROM = "    # Model and output files come before the data"


def test_the_recipes_differ_only_in_stage_and_template():
    pretrain, fine_tune = ((RECIPES / name).read_text(encoding="utf-8").partition(SHARED_FROM)[2]
                           for name in ("train_pretrain.py", "train_full_sft.py"))
    assert pretrain
    for own, other in (('"pretrain"', '"full_sft"'),
                       ("(settings, start, tokenizer, None, ranks)", "(settings, start, tokenizer, template, ranks)"),
                       ("model.config.context, tokenizer, None)", "model.config.context, tokenizer, template)"),
                       ("encoding_facts(tokenizer)", "encoding_facts(tokenizer, template, data.chat_template)")):
        assert own in pretrain
        pretrain = pretrain.replace(own, other)
    assert pretrain.splitlines() == fine_tune.splitlines()


def test_adapters_train_as_all_weights_do():
    fine_tune, lora = ((RECIPES / name).read_text(encoding="utf-8").partition("def main()")[2]
                       for name in ("train_full_sft.py", "train_lora.py"))
    assert fine_tune
    identity = "        identity = run_identity(settings, encoder, model.config, train_set, eval_set)\n"
    for own, other in (
            ("SFTSettings", "LoraSFTSettings"),
            ("model, family = starting_model(", "model, base = adapted_model("),
            ("Outputs(weights_path(saving.save_dir, saving.save_weight, model.config))",
             'Outputs(adapter_path(saving.save_dir, settings.lora.lora_name, model.config), "--lora_name")'),
            (identity, f"{identity}        identity |= adapter_identity(model, settings.lora, base)\n"),
            ("Writes the weights as they are now, for use, with a sidecar that describes them.",
             "Writes the adapter as it is now, for use, with a sidecar that describes it."),
            ("unsharded = gather(model, ranks)", "trained = gather_own(model, ranks)"),
            ('"full_sft", "run": outputs.run, "family": family,',
             '"lora", "run": outputs.run, **adapter_facts(model, settings.lora, base),'),
            ('run_facts("full_sft", ', 'run_facts("lora", '),
            ("write_weights(outputs.weights, unsharded,", "write_adapter(outputs.weights, trained,"),
            ('next_lines("full_sft", settings, outputs.weights, outputs.metrics)',
             'next_lines("lora", settings, outputs.weights, outputs.metrics, base=start)')):
        assert own in fine_tune
        fine_tune = fine_tune.replace(own, other)
    assert fine_tune.splitlines() == lora.splitlines()
