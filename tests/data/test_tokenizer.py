"""Every text round-trips, no text can contain the end-of-text token, and a saved tokenizer is the same one."""

import functools
import json
import pickle
import random

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from linscale.config import UserError
from linscale.data.sources import CORPORA
from linscale.data.tokenizer import (
    END_OF_TEXT_NAMES,
    PIECE_CHARACTERS,
    ByteTokenizer,
    SubwordTokenizer,
    bpe_size,
    load_tokenizer,
    train_bpe,
)
from linscale.generate.sample import opened

SHAKESPEARE = (CORPORA / "tinyshakespeare.txt").read_text(encoding="utf-8")
HOSTILE = "a<|endoftext|>b</s><|im_end|> \r\n\n\tnaïve 東京 🏳️‍🌈 \x00\x1f \u2028 'tis 12345 <|endoftext|"


@functools.cache
def bpe():
    return train_bpe([SHAKESPEARE[:200_000]], 1000)


def word_tokenizer(*tokens, **added):
    """A foreign tokenizer: whole words between spaces, `added` maps extra tokens to whether they are special."""
    inner = tokenizers.Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, tokens[0]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    for token, special in added.items():
        inner.add_tokens([tokenizers.AddedToken(token.replace("EOS", "<eos>"), special=special)])
    return inner


def random_text(seed):
    """Characters of every plane except surrogates, plain words, and names of special tokens."""
    draw = random.Random(seed)
    rare = [chr(draw.choice([draw.randrange(0xD800), draw.randrange(0xE000, 0x110000)])) for _ in range(10)]
    return "".join(draw.choices([*rare, *END_OF_TEXT_NAMES, *" \n\r\t'0aZ", " the", HOSTILE], k=draw.randrange(40)))


@pytest.mark.parametrize("make", [ByteTokenizer, bpe], ids=["byte", "bpe"])
def test_every_text_round_trips_without_end_of_text(make):
    tokenizer = make()
    for text in ["", *END_OF_TEXT_NAMES, *(random_text(seed) for seed in range(50))]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eos_id not in ids
        assert all(0 <= token < tokenizer.vocab_size for token in ids)


def test_byte_ids_are_bytes():
    tokenizer = load_tokenizer("byte")
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.name) == (257, 256, "byte")
    assert tokenizer.encode("é!") == [0xC3, 0xA9, 0x21]
    assert tokenizer.decode([0x61, 0xC3, 256, 0x62]) == "a\N{REPLACEMENT CHARACTER}b"


@pytest.mark.slow
def test_bpe_has_the_size_asked_for_and_is_reproducible():
    again = train_bpe([SHAKESPEARE[:200_000]], 1000)
    assert (bpe().vocab_size, bpe().eos_id, bpe().name, bpe().dtype) == (1000, 0, "bpe:1000", np.dtype("<u2"))
    assert again.content == bpe().content
    assert len(bpe().encode(SHAKESPEARE)) < 0.45 * len(SHAKESPEARE)


@pytest.mark.slow
def test_a_long_text_gives_the_ids_of_the_whole():
    """Encoding goes in pieces; the ids are those the library gives for the text at once."""
    text = SHAKESPEARE[:300_000].replace("the", "\n\n   the").replace("and", "and \n\n") + HOSTILE
    whole = bpe()._tokenizer.encode(text, add_special_tokens=False).ids
    assert len(text) > 10 * PIECE_CHARACTERS
    assert bpe().encode(text) == whole


@pytest.mark.parametrize("make", [ByteTokenizer, bpe], ids=["byte", "bpe"])
def test_save_and_load(make, tmp_path):
    tokenizer = make()
    path = tokenizer.save(tmp_path)
    for copy in (load_tokenizer(path), load_tokenizer(tmp_path), pickle.loads(pickle.dumps(tokenizer))):
        assert copy.fingerprint == tokenizer.fingerprint
        assert copy.name == tokenizer.name
        assert copy.encode(HOSTILE) == tokenizer.encode(HOSTILE)
    assert ByteTokenizer().fingerprint != bpe().fingerprint


def test_a_saved_bpe_is_a_hugging_face_file(tmp_path):
    inner = tokenizers.Tokenizer.from_file(str(bpe().save(tmp_path)))
    assert inner.encode("Speak, speak.").ids == bpe().encode("Speak, speak.")


def test_foreign_end_of_text_is_found_even_where_it_is_not_marked_special(tmp_path):
    path = tmp_path / "words.json"
    word_tokenizer("[UNK]", "to", "be", EOS=False).save(str(path))
    tokenizer = load_tokenizer(path)
    assert (tokenizer.name, tokenizer.eos_id, tokenizer.vocab_size) == ("words.json", 3, 4)
    assert tokenizer.encode("to <eos> be") == [1, 0, 2]
    assert tokenizer.decode([1, 3, 2]) == "to be"


def test_foreign_vocabulary_grows_by_an_end_of_text(tmp_path):
    word_tokenizer("[UNK]", "to", "be").save(str(tmp_path / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path)
    assert (tokenizer.eos_id, tokenizer.vocab_size) == (3, 4)
    copy = load_tokenizer(tokenizer.save(tmp_path / "copy"))
    assert (copy.eos_id, copy.vocab_size, copy.fingerprint) == (3, 4, tokenizer.fingerprint)


def test_end_of_text_in_the_model_itself_cannot_be_injected():
    content = json.loads(word_tokenizer("[UNK]", "</s>", "<", "/s>", "a").to_str())
    tokenizer = SubwordTokenizer(content, "words")
    assert tokenizer.eos_id == 1
    assert tokenizer.encode("a </s>") == [4, 2, 3]
    with pytest.raises(UserError, match="unknown token is another"):
        SubwordTokenizer(json.loads(word_tokenizer("</s>", "a").to_str()), "words").encode("a b")


def test_truncation_padding_and_templates_of_the_file_do_not_apply():
    inner = word_tokenizer("[UNK]", "a", EOS=True)
    inner.enable_truncation(2)
    inner.enable_padding(length=8)
    inner.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 2)])
    assert SubwordTokenizer(json.loads(inner.to_str()), "words").encode("a a a") == [1, 1, 1]


def test_pieces_only_where_nothing_depends_on_the_whole():
    inner = word_tokenizer("[UNK]", "a", EOS=True)
    inner.normalizer = normalizers.Prepend("_")
    assert not SubwordTokenizer(json.loads(inner.to_str()), "words").in_pieces
    assert bpe().in_pieces


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bpe:256", "at least 257"),
        ("bpe:many", "whole number"),
        ("bpe:-1", "whole number"),
        ("bpe:8192", "prepare"),
        ("nothing.json", "no such file"),
    ],
)
def test_bad_specs(spec, message):
    with pytest.raises(UserError, match=message):
        load_tokenizer(spec)


@pytest.mark.parametrize("text", ["[]", "{}", '{"model": {"type": "BPE"}}', "{", "\xff"])
def test_bad_files(text, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        load_tokenizer(path)


def test_bpe_size():
    assert bpe_size("bpe:8192") == 8192
    assert bpe_size("byte") is None


def test_a_tokenizer_that_came_with_a_model_names_what_ends_and_opens_a_text(tmp_path):
    content = train_bpe(["words and other words"] * 3, 280).content
    names = {number: token for token, number in content["model"]["vocab"].items()}
    marked = SubwordTokenizer({**content, "linscale": {"eos": names[70], "bos": names[71]}}, "marked")
    assert (marked.eos_id, marked.bos_id, marked.vocab_size) == (70, 71, len(names))
    marked.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert (again.eos_id, again.bos_id, again.fingerprint) == (70, 71, marked.fingerprint)
    plain = SubwordTokenizer(content, "plain")
    assert (plain.eos_id, plain.bos_id, plain.opening, marked.opening) == (0, 0, [0], [71])
    bare = SubwordTokenizer({**content, "linscale": {"bos": names[71], "opens": False}}, "bare")
    assert (bare.bos_id, bare.opening, opened(bare, "words"), opened(bare, "")) == (71, [], bare.encode("words"), [71])
    assert plain.fingerprint != marked.fingerprint
    with pytest.raises(UserError, match=r"linscale.eos = 'no such': no token of its vocabulary"):
        SubwordTokenizer({**content, "linscale": {"eos": "no such"}}, "wrong")
