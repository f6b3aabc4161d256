"""linscale's models as transformers' classes: generate, peft, Trainer and lm-evaluation-harness work on them.

Importing this module registers them, so that AutoModelForCausalLM loads an exported folder; `import linscale` sees to
it that this happens when transformers is imported.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, GenerationConfig, GenerationMixin, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from linscale.adapt.transformers_config import LinscaleConfig
from linscale.adapt.transformers_past import Past
from linscale.config import parse
from linscale.layers import ToeplitzEncoding
from linscale.models import LanguageModel, ModelConfig, State, build_model
from linscale.models.linearized_mixer import LinearAttention
from linscale.models.tnl import TNLMixer


class LinscaleForCausalLM(PreTrainedModel, GenerationMixin):
    """Any of linscale's architectures. Padding on either side, and anywhere else, changes nothing: it is taken out."""

    config_class = LinscaleConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    _is_stateful = True
    _no_split_modules = ["Block"]  # noqa: RUF012
    _keep_in_fp32_modules_strict = {"lrpe", "position_encoder", "lower_bound_logits", "decay_gate"}  # noqa: RUF012 (their type)
    _supports_sdpa = True

    def __init__(self, config: LinscaleConfig) -> None:
        super().__init__(config)
        self.model: LanguageModel = build_model(parse(ModelConfig, config.linscale or {}, source="config.linscale"))
        self.post_init()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        past_key_values: Past | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> CausalLMOutputWithPast | tuple[Tensor, ...]:
        """Logits (B, T, V) of input_ids (B, T), the mean loss where there are `labels` (shifted here, less -100), and
        the past.

        attention_mask   (B, T), or (B, S) with S - T columns of the past before: 0 for padding
        logits_to_keep   the last so many columns alone, or these; 0 for all
        position_ids     not read: tokens are counted from the first one that is no padding

        Raises ValueError for embeddings in place of tokens, and for attentions, which are never made.
        """
        if input_ids is None or inputs_embeds is not None:
            raise ValueError("inputs_embeds: not supported; expected input_ids")
        if output_attentions:
            raise ValueError("output_attentions = True: not supported, attention is a state and not a matrix")
        past = past_key_values if isinstance(past_key_values, Past) else None
        if past_key_values is not None and past is None and past_key_values.get_seq_length():
            raise ValueError(
                f"past_key_values is a {type(past_key_values).__name__}; expected what this model returned"
            )
        x, state = self._read(input_ids, attention_mask, None if past is None else past.state)
        kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) and logits_to_keep else slice(None)
        logits = self.model.logits(x[:, logits_to_keep if isinstance(logits_to_keep, Tensor) else kept])
        loss = None if labels is None else _mean_loss(self.model.logits(x), labels)
        if use_cache is None:
            use_cache = self.config.use_cache and not self.training
        after = None
        if use_cache:
            after = Past() if past is None else past
            after.advance(state, input_ids.shape[1])
        output = CausalLMOutputWithPast(
            loss=loss, logits=logits, past_key_values=after, hidden_states=(x,) if output_hidden_states else None
        )
        whole = self.config.return_dict if return_dict is None else return_dict
        return output if whole else output.to_tuple()

    def _read(self, tokens: Tensor, mask: Tensor | None, state: State | None) -> tuple[Tensor, State]:
        """What the head takes, (B, T, D), 0 at padding, and the state. Rows with padding are packed without it."""
        mask = None if mask is None else mask[:, -tokens.shape[1] :].bool()
        if mask is None or bool(mask.all()):
            return self.model.read(tokens, state)
        lengths = mask.sum(1)
        if not bool((lengths > 0).all()):
            raise ValueError("attention_mask: a row has no token; expected at least one in each")
        bounds = nn.functional.pad(lengths.cumsum(0), (1, 0))
        packed, state = self.model.read(tokens[mask][None], state, bounds)
        x = packed.new_zeros(*tokens.shape, packed.shape[-1])
        return x.index_put(torch.nonzero(mask, as_tuple=True), packed[0]), state

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.embedding = value  # type: ignore[assignment]

    def get_output_embeddings(self) -> nn.Module | None:
        """None where the head is the embedding."""
        return self.model.head

    def set_output_embeddings(self, value: nn.Linear) -> None:
        self.model.head = value

    @classmethod
    def _supports_default_dynamic_cache(cls) -> bool:
        """No: `Past` in its place."""
        return False

    def _prepare_cache_for_generation(  # type: ignore[override]  # what follows are sizes of a cache that grows
        self, generation_config: GenerationConfig, model_kwargs: dict[str, Any], *sizes: object
    ) -> None:
        """Begin with an empty past where none is given, so that a long prompt can be read in chunks."""
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = Past()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """First values of what a checkpoint does not hold: constants alone."""
        if isinstance(module, TNLMixer | LinearAttention):
            module.reset_log_decay()
        elif isinstance(module, ToeplitzEncoding):
            module.reset_rates()


def _mean_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of each next token, in nats, over labels (B, T) that are not -100."""
    targets = labels[:, 1:].to(logits.device)
    return cross_entropy(logits[:, :-1].float().flatten(0, 1), targets.flatten(), ignore_index=-100)


AutoModelForCausalLM.register(LinscaleConfig, LinscaleForCausalLM, exist_ok=True)
