"""Where a text ends and why, and what is told of each token."""

import pytest

from linscale.data.tokenizer import load_tokenizer
from linscale.generate.continuation import Continuation
from linscale.generate.sampling import Sampling

BYTES = load_tokenizer("byte")


def run(tokens, **options):
    text = Continuation(BYTES, Sampling(**options))
    pieces = []
    for token in tokens:
        pieces.append(text.add(token, -1.0, [(token, -1.0), (1, -2.0)]))
        if text.finish_reason:
            break
    assert [piece.finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 1)
    assert text.tokens == [piece.token for piece in pieces]
    return "".join(piece.text for piece in pieces), pieces[-1].finish_reason, len(pieces)


def test_why_a_text_ends():
    tokens = [*b"abc<end>def", 256, *b"ghi"]
    assert run(tokens) == ("abc<end>def", "stop", 12)
    assert run(tokens, ignore_eos=True) == ("abc<end>defghi", None, 15)
    assert run(tokens, max_tokens=12, ignore_eos=True) == ("abc<end>def", "length", 12)
    assert run(tokens, max_tokens=5) == ("abc<e", "length", 5)
    assert run(tokens, max_tokens=5, stop="<end>") == ("abc<e", "length", 5)  # kept back, and not a stop string
    assert run(tokens, max_tokens=8, stop="<end>") == ("abc", "stop", 8)
    assert run(tokens, max_tokens=12) == ("abc<end>def", "stop", 12)
    assert run([*b"ab<", 256], stop="<end>") == ("ab<", "stop", 4)
    assert run("é".encode()[:1], max_tokens=1) == ("\ufffd", "length", 1)
    assert run("é".encode()[:1], max_tokens=1, stop="\ufffd") == ("", "stop", 1)


def test_offsets_and_log_probabilities():
    for asked, expected in ((None, (None, ())), (0, (-0.5, ())), (1, (-0.5, ((97, -0.5),)))):
        text = Continuation(BYTES, Sampling(logprobs=asked, stop="b!"))
        pieces = [text.add(token, -0.5, [(97, -0.5), (98, -3.0)]) for token in "aéb!".encode()]
        assert [piece.offset for piece in pieces] == [0, 1, 1, 2, 3]
        assert [piece.text for piece in pieces] == ["a", "", "é", "", ""]
        assert {(piece.logprob, piece.alternatives) for piece in pieces} == {expected}
    with pytest.raises(ValueError, match="has ended"):
        text.add(97)
