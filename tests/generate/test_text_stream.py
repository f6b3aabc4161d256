"""Text as it comes: all pieces together are the text of all tokens, cut before the first stop string."""

import json
import random

import pytest
import tokenizers

from linscale.data.tokenizer import SubwordTokenizer, load_tokenizer, train_bpe
from linscale.generate import text_stream
from linscale.generate.text_stream import TextStream

TEXT = "naïve café, 漢字と仮名 🦋🦋 to be or not to be: that is the question. Ωmega — ünïcödé\n\n"
WORDS = [TEXT[k : k + 40] for k in range(len(TEXT))]


def sentencepiece():
    """As Llama 2 and Mistral have it: ▁ for spaces, single bytes for characters out of the vocabulary."""
    pieces = ["▁", "▁to", "▁be", "▁the", "th", "at", "t", "h", "e", "a", "o", "b", ",", "é", "s", "▁▁"]
    vocab = [
        ("<unk>", 0.0),
        *((f"<0x{byte:02X}>", -20.0) for byte in range(256)),
        *((p, -1.0 - len(p)) for p in pieces),
    ]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram(vocab, unk_id=0, byte_fallback=True))
    tokenizer.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.Prepend("▁"), tokenizers.normalizers.Replace(" ", "▁")]
    )
    decoders = tokenizers.decoders
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return SubwordTokenizer(json.loads(tokenizer.to_str()), "sentencepiece")


def wordpiece():
    vocab = {word: n for n, word in enumerate(["[UNK]", "to", "be", "##st", "the", ".", "##e", "é"])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(vocab, unk_token="[UNK]"))
    tokenizer.decoder = tokenizers.decoders.WordPiece(cleanup=False)
    return SubwordTokenizer(json.loads(tokenizer.to_str()), "wordpiece")


BYTES, BPE, PIECES = load_tokenizer("byte"), train_bpe(WORDS, 400), sentencepiece()
TOKENIZERS = {"byte": BYTES, "bpe": BPE, "sentencepiece": PIECES, "wordpiece": wordpiece()}


def streamed(tokenizer, tokens, stop=(), before=()):
    """The pieces, and how many tokens were read."""
    stream, pieces = TextStream(tokenizer, before, stop), []
    for count, token in enumerate(tokens, 1):
        pieces.append(stream.add(token))
        if stream.stopped:
            assert stream.add(tokens[0]) == stream.end() == ""
            return pieces, count
    pieces.append(stream.end())
    assert stream.stopped or stream.length == len("".join(pieces))
    return pieces, len(tokens)


def draw(generator, name):
    """Tokens of a text, or any tokens; a sentencepiece tokenizer's bytes only as whole characters."""
    tokenizer = TOKENIZERS[name]
    if name == "wordpiece":
        return [generator.randrange(tokenizer.vocab_size) for _ in range(generator.randrange(1, 30))]
    tokens = []
    for _ in range(generator.randrange(1, 6)):
        start = generator.randrange(len(TEXT))
        part = tokenizer.encode(TEXT[start : start + generator.randrange(1, 25)])
        if name != "sentencepiece":
            cut = generator.randrange(3)  # in the middle of a character
            part = part[cut:] + [generator.randrange(tokenizer.vocab_size) for _ in range(generator.randrange(4))]
        elif generator.random() < 0.3:
            part.append(tokenizer.eos_id)
        tokens += part
    return tokens or [65]


@pytest.mark.parametrize("name", TOKENIZERS)
def test_all_pieces_are_the_text_of_all_tokens(name):
    generator, tokenizer, held = random.Random(name), TOKENIZERS[name], 0
    for _ in range(300):
        tokens = draw(generator, name)
        pieces, _ = streamed(tokenizer, tokens)
        assert "".join(pieces) == tokenizer.decode(tokens)
        held += sum(not piece for piece in pieces)
    assert name == "wordpiece" or held > 100


@pytest.mark.parametrize("name", TOKENIZERS)
def test_the_text_is_cut_before_the_first_stop_string_and_never_shows_it(name):
    """The text ends with the token that completes the first stop string, and no earlier."""
    generator, tokenizer, found = random.Random(name), TOKENIZERS[name], 0
    for _ in range(300):
        tokens = draw(generator, name)
        text = tokenizer.decode(tokens)
        stops = []
        for _ in range(generator.randrange(1, 4)):
            start = generator.randrange(len(text) + 1)
            part = text[start : start + generator.randrange(1, 6)]
            odd = part + generator.choice(["", "", "x", part])
            stops += [odd] if odd.strip(text_stream.BROKEN) == odd and odd else []
        pieces, count = streamed(tokenizer, tokens, stops)
        whole = "".join(pieces)
        seen = tokenizer.decode(tokens[:count])
        places = [seen.index(stop) for stop in stops if stop in seen]
        if any(stop in text for stop in stops):
            found += 1
            assert whole == seen[: min(places)]
            before = tokenizer.decode(tokens[: count - 1])
            assert not any(stop in before for stop in stops)
        else:
            assert whole == text
            assert count == len(tokens)
    assert found > 30


def test_nothing_that_may_begin_a_stop_string_is_shown_before_it_is_sure():
    stream = TextStream(BYTES, stop=["</end>", "<stop>"])
    given = [stream.add(byte) for byte in b"a<b</en</enx<<s"]
    assert given == ["a", "", "<b", "", "", "", "", "</en", "", "", "", "</enx", "", "<", ""]
    assert stream.end() == "<s"
    stream = TextStream(BYTES, stop=["</end>", "<stop>"])
    assert "".join(stream.add(byte) for byte in b"a</en<stop>b") == "a</en"
    assert stream.stopped


def test_a_character_comes_when_its_last_byte_does():
    stream = TextStream(BYTES)
    assert [stream.add(byte) for byte in "é🦋".encode()] == ["", "é", "", "", "", "🦋"]
    assert [stream.add(0xE4), stream.length, stream.end(), stream.length] == ["", 2, "\ufffd", 3]
    butterfly = PIECES.encode("🦋🦋")[-8:]
    stream = TextStream(PIECES)
    assert [stream.add(token) for token in butterfly] == ["", "", "", "🦋"] * 2


def test_the_first_word_has_its_space_behind_a_prompt_and_not_without():
    prompt, rest = PIECES.encode("to be"), PIECES.encode("the")
    assert "".join(streamed(PIECES, rest)[0]) == "the"
    assert "".join(streamed(PIECES, rest, before=prompt)[0]) == " the"
    assert "".join(streamed(PIECES, rest, before=[PIECES.eos_id])[0]) == "the"
    assert "".join(streamed(PIECES, rest, before=[*prompt, PIECES.eos_id])[0]) == " the"
    broken = PIECES.encode("🦋")[-2:]  # ends of a character are no context
    assert "".join(streamed(PIECES, PIECES.encode("🦋")[-4:], before=broken)[0]) == "🦋"


def test_a_stop_string_does_not_reach_into_the_prompt():
    assert streamed(BYTES, b"bc", stop=["ab"], before=b"a") == (["b", "c", ""], 2)


@pytest.mark.parametrize("name", ["byte", "bpe", "sentencepiece"])
def test_bytes_that_are_no_text_stay_few_in_the_window(name, monkeypatch):
    tokenizer, longest = TOKENIZERS[name], 0
    first = {"byte": 0, "sentencepiece": 1}.get(name)
    alone = [tokenizer.encode_batch([chr(0x80 + n)])[0] for n in range(2)] if first is None else None
    values = [0x80, 0xE4, 0x80, 0xF0, 0x9F] if alone is None else None
    tokens = [first + value for value in values] * 200 if values else [int(alone[0][0])] * 1000
    decode = type(tokenizer).decode

    def counted(self, ids):
        nonlocal longest
        ids = list(ids)
        longest = max(longest, len(ids))
        return decode(self, ids)

    monkeypatch.setattr(type(tokenizer), "decode", counted)
    pieces, _ = streamed(tokenizer, tokens)
    assert longest <= text_stream.MOST_WINDOW + 1
    assert "".join(pieces) == decode(tokenizer, tokens)
