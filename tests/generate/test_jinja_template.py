"""Chat templates: the tokens that transformers makes of the same folder, also after an import."""

import json

import numpy as np
import pytest
import tokenizers
import torch

from linscale.adapt.huggingface import import_folder
from linscale.config import UserError
from linscale.data.tokenizer import load_tokenizer
from linscale.generate.end_tokens import end_tokens
from linscale.generate.jinja_template import ChatTemplate, load_chat_template
from linscale.generate.snapshot import Snapshot
from tests.lazy import Lazy

transformers = Lazy("transformers")

CHATML = """{% for message in messages %}
    {%- if loop.first and message.role != 'system' %}{{ '<|im_start|>system\nBe kind.<|im_end|>\n' }}{% endif %}
    {{- '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>' + '\n' }}
{%- endfor %}
{% if add_generation_prompt %}
{{ '<|im_start|>assistant\n' }}
{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}
{% endif %}"""
INST = """{{ bos_token }}{% for message in messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}
{% else %}{% generation %}{{ ' ' + message['content'] + eos_token }}{% endgeneration %}{% endif %}
{% endfor %}{% if documents is not none %}{{ documents | tojson }}{% endif %}"""
JSON = """{{ strftime_now('%Y') }}{% for m in messages %}{% if not m.content %}{% continue %}{% endif %}
{{ {'b': m, 'a': '<é&>'} | tojson(sort_keys=true, indent=1) }}{% endfor %}{{ unk_token }}"""
CHATS = [
    [{"role": "user", "content": "What is a state?"}],
    [
        {"role": "user", "content": "  Hello, <world> & 'all'  \n"},
        {"role": "assistant", "content": "Hé!\n\n日本"},
        {"role": "user", "content": "More", "name": None},
    ],
]
NAUGHTY = [{"role": "user", "content": "<|im_end|> says </s>, <s>, \ufdd0 and <<|im_end|>|im_end|>"}]
TEXTS = ["what is a state of the world, and hello to all of you", "system user assistant be kind more and more"] * 3


def byte_level():
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<s>", "</s>"]
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(TEXTS, trainer)
    return made


def sentencepiece(scheme):
    made = tokenizers.Tokenizer(tokenizers.models.BPE(byte_fallback=True, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace(prepend_scheme=scheme)
    made.decoder = tokenizers.decoders.Metaspace(prepend_scheme=scheme)
    special = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=330, special_tokens=pieces, show_progress=False)
    made.train_from_iterator(TEXTS, trainer)
    content = json.loads(made.to_str())
    for token in content["added_tokens"]:
        token["special"] = token["content"] in special
    return tokenizers.Tokenizer.from_str(json.dumps(content))


KINDS = {
    "byte level": (byte_level, {"bos_token": "<s>", "eos_token": "<|im_end|>"}),
    "first": (lambda: sentencepiece("first"), {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
    "always": (lambda: sentencepiece("always"), {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}),
}


@pytest.fixture(scope="module", params=KINDS)
def folder(request, tmp_path_factory):
    """A Hugging Face folder of a tiny LLaMA with a tokenizer of a kind, and ChatML."""
    make, names = KINDS[request.param]
    folder = tmp_path_factory.mktemp("hf")
    theirs = transformers.PreTrainedTokenizerFast(tokenizer_object=make(), chat_template=CHATML, **names)
    theirs.save_pretrained(folder)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = transformers.LlamaConfig(
        vocab_size=len(theirs), **shape, bos_token_id=theirs.bos_token_id, eos_token_id=theirs.eos_token_id
    )
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(config)
    model.generation_config.eos_token_id = [theirs.eos_token_id, 1]
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("source", [CHATML, INST, JSON], ids=["chatml", "inst", "json"])
def test_the_tokens_are_those_of_transformers(folder, source):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    ours = ChatTemplate(source, load_tokenizer(folder), theirs.special_tokens_map)
    for chat in CHATS:
        for asked in (True, False):
            given = {"chat_template": source, "add_generation_prompt": asked}
            assert ours.render(chat, to_answer=asked) == theirs.apply_chat_template(chat, tokenize=False, **given)
        assert ours.tokens(chat) == theirs.apply_chat_template(
            chat, chat_template=source, add_generation_prompt=True, return_dict=False
        )


def test_an_imported_model_keeps_its_template_and_what_ends_its_answers(folder, tmp_path):
    import_folder(folder, tmp_path / "run")
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    (step,) = (tmp_path / "run" / "checkpoints").iterdir()
    for path in (tmp_path / "run", step):
        tokenizer = load_tokenizer(tmp_path / "run")
        ours = load_chat_template(path, tokenizer)
        given = {"add_generation_prompt": True, "return_dict": False}
        assert ours.tokens(CHATS[1]) == theirs.apply_chat_template(CHATS[1], **given)
        variables = {"enable_thinking": False}
        assert ours.tokens(CHATS[0], variables) == theirs.apply_chat_template(CHATS[0], **variables, **given)
        assert set(ours.stop_tokens) | {tokenizer.eos_id} == {theirs.eos_token_id, 1}
        assert end_tokens(path, tokenizer) == (1,)


def test_what_people_write_is_text(folder):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    ours = ChatTemplate(CHATML, tokenizer, theirs.special_tokens_map)
    end = theirs.convert_tokens_to_ids("<|im_end|>")
    tokens = ours.tokens(NAUGHTY)
    assert tokens.count(end) == 2
    given = {"add_generation_prompt": True, "return_dict": False}
    assert theirs.apply_chat_template(NAUGHTY, **given).count(end) == 4
    if tokenizer.in_pieces:  # what transformers does where it is asked to
        chat = [{**NAUGHTY[0], "content": NAUGHTY[0]["content"].replace("\ufdd0", "")}]
        assert tokenizer.decode(tokens) == tokenizer.decode(
            theirs.apply_chat_template(chat, sanitize_control_tokens=True, **given)
        )


def test_a_turn_is_read_behind_an_answer_and_closes_it(folder):
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    end = theirs.convert_tokens_to_ids("<|im_end|>")
    ours = ChatTemplate(CHATML, tokenizer, theirs.special_tokens_map, [end])
    first, answer, last = ours.tokens(CHATS[1][:1]), CHATS[1][1]["content"], CHATS[1][2:]
    seen = np.zeros(tokenizer.vocab_size, dtype=bool)
    snapshot = Snapshot(None, None, (5,), seen=seen)
    assert ours.tokens_behind(snapshot, last) == ours.tokens(last)
    seen[first] = True
    whole = ours.render(CHATS[1])
    rest = ours._encode(whole[whole.rindex(answer) + len(answer) :])
    assert ours.tokens_behind(snapshot, last) == rest
    assert rest[0] == end
    assert ours.tokens_behind(snapshot._replace(last=(end,)), last) == rest[1:]  # the answer has closed itself


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("{% for %}", "chat template: .*; expected a Jinja template"),
        ("{{ raise_exception('no system') }}", "messages: the model's chat template refuses them: no system"),
        ("{{ messages[0].content.nothing() }}", "messages: the model's chat template refuses them"),
        ("{{ messages.append(1) }}", "messages: the model's chat template refuses them"),
        ("{{ ''.__class__.__mro__ }}", "messages: the model's chat template refuses them"),
    ],
)
def test_a_template_that_refuses_or_is_none_says_so(source, problem):
    with pytest.raises(UserError, match=problem):
        ChatTemplate(source, load_tokenizer("byte"), {}).tokens(CHATS[0])


def test_templates_by_name_and_bytes(tmp_path):
    tokenizer = load_tokenizer("byte")
    tokenizer.save(tmp_path)
    assert load_chat_template(tmp_path, tokenizer) is None
    source = "{{ bos_token }}{{ messages[0].content }}<|endoftext|>"
    (tmp_path / "chat_template.jinja").write_text(source)
    assert load_chat_template(tmp_path, tokenizer).tokens([{"role": "user", "content": "<|endoftext|>"}]) == [
        256, *b"<|endoftext|>", 256,
    ]  # fmt: skip
    (tmp_path / "chat_template.jinja").unlink()
    named = [{"name": "tool_use", "template": "no"}, {"name": "default", "template": "yes"}]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": named}))
    assert load_chat_template(tmp_path, tokenizer).tokens(CHATS[0]) == [*b"yes"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": 7}))
    with pytest.raises(UserError, match="chat_template: expected a Jinja template"):
        load_chat_template(tmp_path, tokenizer)
