"""Ranks compare what identifies their run."""

from pathlib import Path

import pytest
from processes import on_ranks

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.prepared import prepare
from minimind_sft.data.samples import SFTEncoder
from minimind_sft.data.sources import find_files
from minimind_sft.data.tokenizer_choice import load_tokenizer
from minimind_sft.errors import ProcessLost, UserError
from minimind_sft.settings.command_line import parse_flags
from minimind_sft.settings.training import SFTSettings
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.identity import check_agreement, run_identity
from minimind_sft.training.start import starting_model


def starts_together(ranks: Ranks, data: Path, out: Path, *odd_flags: str) -> str:
    """Starts like the recipe, with other flags for the second rank; returns what it says."""
    flags = odd_flags if ranks.rank else ()
    settings = parse_flags(SFTSettings, "", [
        "--from_weight", "none", "--hidden_size", "32", "--num_hidden_layers", "1", "--device", "cpu",
        "--save_dir", str(out), *flags, *(() if "--data_path" in flags else ("--data_path", str(data)))])
    template = ChatTemplate(load_tokenizer(settings.data.tokenizer_path))
    encoder = SFTEncoder(template, settings.data.max_seq_len)
    model, _ = starting_model(settings, None, template.tokenizer, template, ranks)
    train_set = prepare(find_files(settings.data.data_path), encoder, out / "prepared")
    try:
        check_agreement(run_identity(settings, encoder, model.config, train_set, None), settings, model, ranks)
        return "fine"
    except (UserError, ProcessLost) as error:
        return str(error)


@pytest.mark.parametrize(("odd_flags", "field"), [
    ([], None),
    (["--learning_rate", "1e-3"], "learning_rate is 0.001 on rank 1, but 0.0005 on the main rank"),
    (["--seed", "7"], "seed is 7 on rank 1, but 42 on the main rank"),
    (["--data_path", "{other}"], "data is "),
    (["--epochs", "3"], "epochs is 3 on rank 1, but 2 on the main rank"),
])
def test_ranks_with_different_settings_are_refused(sft_data, tmp_path, odd_flags, field):
    other = tmp_path / "other.jsonl"
    other.write_text(sft_data.read_text() + "\n")
    odd_flags = [flag.format(other=other) for flag in odd_flags]
    main, second = on_ranks(2, starts_together, sft_data, tmp_path, *odd_flags)
    if field is None:
        assert (main, second) == ("fine", "fine")
    else:
        assert second.startswith(field) and main.startswith("rank 1 has failed")
