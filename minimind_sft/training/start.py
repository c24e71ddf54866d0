"""Builds the model that a run starts from."""

from pathlib import Path

from minimind_sft.data.chat_template import ChatTemplate
from minimind_sft.data.tokenizer import Tokenizer
from minimind_sft.matching import check_template, check_tokenizer
from minimind_sft.model.build import check_context, check_size, new_model, place_model
from minimind_sft.model.decoder import MiniMindForCausalLM
from minimind_sft.model.loaded import Weights
from minimind_sft.model.weights import read_weights
from minimind_sft.settings.data import SFTDataSettings
from minimind_sft.settings.training import TrainSettings
from minimind_sft.training.distributed import Ranks
from minimind_sft.training.freezing import freeze
from minimind_sft.training.outputs import continues_a_run
from minimind_sft.training.summary import describe_model


def starting_model(settings: TrainSettings, start: Path | None, tokenizer: Tokenizer, template: ChatTemplate | None,
                   ranks: Ranks) -> tuple[MiniMindForCausalLM, str | None]:
    """Builds the model of the weights at `start`, or a new one, on this rank's device, and describes it.

    Also returns the name of the family that the weights came from, None for our own.

    Args:
        template: what the run trains with; None for running text, which any weights can learn.

    Raises:
        UserError: if the weights disagree with the flags, the tokenizer or the chat template, `--max_seq_len` is beyond
            the model's context, or `--freeze` names a part that the model does not have.
    """
    family = None
    if start is None:
        model = new_model(settings.model, tokenizer.vocab_size, settings.data.seed)
        check_context(settings.data.max_seq_len, model.config, None)
    else:
        # A resumed run takes its weights from the resume state; these may be its own, half written.
        weights = starting_weights(settings, start, tokenizer, template, ranks,
                                   check_sum=not continues_a_run(settings.saving))
        model, family = weights.build_model(settings.model.dropout), weights.family
    ranks.say(*(f"frozen      {notice}" for notice in freeze(model, settings.model.freeze)))
    ranks.say(describe_model(model, start, family, settings.runtime.dtype, ranks.device))
    place_model(model, settings.runtime, ranks.device)
    return model, family


def starting_weights(settings: TrainSettings, start: Path, tokenizer: Tokenizer, template: ChatTemplate | None,
                     ranks: Ranks, *, check_sum: bool = True) -> Weights:
    """Reads the weights at `start` and compares them with what the run trains with.

    Raises:
        UserError: if they disagree with the flags, the tokenizer or the chat template.
    """
    data = settings.data
    weights = read_weights(start, check_sum=check_sum)
    check_size(settings.model, weights.config, start)
    check_context(data.max_seq_len, weights.config, start)
    notices = (*weights.notices, *check_tokenizer(weights, tokenizer, data.tokenizer_path))
    ranks.say(*(f"weights     {notice}" for notice in notices))
    if template is not None:
        assert isinstance(data, SFTDataSettings)
        check_template(weights, template, data.chat_template, data.end_of_turn)
    return weights
