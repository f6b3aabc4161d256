"""States by name: what is loaded in another process goes on to the bit, and nothing else is ever loaded."""

import inspect
import json
import os
import random
import signal
import subprocess
import sys
import threading

import filelock
import pytest
import safetensors.numpy
import torch
from safetensors import safe_open

from linscale.config import UserError
from linscale.data.tokenizer import load_tokenizer, train_bpe
from linscale.generate.batch import read_documents
from linscale.generate.identity import identify, model_hash
from linscale.generate.sampling import Sampling
from linscale.generate.session import Session
from linscale.generate.snapshot import Snapshot
from linscale.generate.state_store import StateStore, states_folder
from linscale.generate.states import fork
from linscale.layers.softmax_attention import KeyValues
from linscale.models import CONFIGS, build_model
from linscale.models.count import state_elements

BYTES = load_tokenizer("byte")
CASES = ["tnl 0", "hgrn2 0", "cosformer2 0", "llama 0", "tnl 2", "hgrn2 2", "cosformer2 2", "recurrent_transformer 2"]
CASES += ["linearized 2"]
PROMPT = [256, *(random.Random(0).randrange(256) for _ in range(70))]


def tiny(case, seed=0):
    arch, every = case.split()
    shape = {"vocab_size": 300, "d_model": 16, "n_layers": 2, "head_dim": 8, "d_ff": 16, "init_std": 0.5}
    return build_model(CONFIGS[arch](**shape, softmax_every=int(every)), seed=seed)


def continued(session):
    """Tokens that go on with the draws of the session."""
    options = {"temperature": 0.9, "top_k": 200, "min_p": 1e-4, "repetition_penalty": 1.2}
    return [piece.token for piece in session.stream(Sampling(max_tokens=12, **options))]


SETUP = f"""
import json, sys, time
import torch
torch.set_num_threads(1)
from linscale.data.tokenizer import load_tokenizer
from linscale.generate.sampling import Sampling
from linscale.generate.session import Session
from linscale.generate.state_store import StateStore
from linscale.models import CONFIGS, build_model

{inspect.getsource(tiny)}
{inspect.getsource(continued)}
"""
RESUME = """
store, found = StateStore(sys.argv[1]), {}
for case in json.loads(sys.argv[2]):
    session = store.resume(case.replace(" ", "-"), tiny(case), load_tokenizer("byte"))
    tokens = continued(session)
    session.read([1, 2, 3])
    found[case] = [tokens, session.length, session.snapshot().logits.tolist()]
assert "torch._dynamo" not in sys.modules, "the compiler was imported: a second of every process that only reads"
assert "torch.distributed.tensor" not in sys.modules
print(json.dumps(found))
"""
SAVE_FOREVER = """
store = StateStore(sys.argv[1])
model, tokenizer = tiny("hgrn2 0"), load_tokenizer("byte")
session = Session(model, tokenizer)
session.read([256])
for _ in range(5000):
    store.save("kept", session.snapshot(), model, tokenizer, replace=True)
    session.read([7])
    print(session.length, flush=True)
"""
HANG = """
import os
from linscale.generate import saved_state
done, real = [], os.replace
def replace(*paths):
    if len(done) == 5:
        print("hanging", flush=True)
        time.sleep(60)
    done.append(real(*paths))
saved_state.os.replace = replace
"""


def begun(model, tokenizer=BYTES, tokens=PROMPT, **options):
    session = Session(model, tokenizer, **options)
    session.read(tokens)
    return session


@pytest.fixture
def store(tmp_path):
    return StateStore(tmp_path / "run" / "states")


@pytest.fixture
def saved(store):
    """A model whose state is saved as `a`."""
    model = tiny("hgrn2 2")
    store.save("a", begun(model).snapshot(), model, BYTES)
    return model


@pytest.mark.slow
def test_another_process_goes_on_to_the_bit(store):
    expected = {}
    for case in CASES:
        model = tiny(case)
        session = begun(model)
        assert list(session.stream(Sampling(max_tokens=6, temperature=0.9, seed=4)))
        store.save(case.replace(" ", "-"), session.snapshot(), model, BYTES)
        tokens = continued(session)
        session.read([1, 2, 3])
        expected[case] = [tokens, session.length, session.snapshot().logits.tolist()]
    words = [sys.executable, "-c", SETUP + RESUME, store.folder, json.dumps(CASES)]
    result = subprocess.run(words, check=True, capture_output=True, text=True)
    assert json.loads(result.stdout) == expected


@pytest.mark.parametrize("case", CASES)
def test_the_file_is_plain_safetensors_of_the_state_cut_to_length(store, case):
    model = tiny(case)
    session = begun(model, keep_tokens=True)
    path = store.save("a", session.snapshot(), model, BYTES)
    tensors = safetensors.numpy.load_file(path)
    assert tensors.pop("tokens").tolist() == PROMPT
    assert tensors.pop("logits").tolist() == session.snapshot().logits.tolist()
    assert tensors.pop("seen").nonzero()[0].tolist() == sorted(set(PROMPT))
    assert ("embedding" in tensors) == case.startswith("cosformer2")
    filters = tensors.pop("embedding").size if "embedding" in tensors else 0
    assert sum(x.size for x in tensors.values()) + filters == state_elements(model.config, len(PROMPT))
    assert {str(x.dtype) for x in tensors.values()} == {"float32"}
    with safe_open(path, framework="np") as file:
        record = json.loads(file.metadata()["linscale_state"])
    assert (record["tokens"], record["dtype"], record["kept"]) == (len(PROMPT), "float32", True)
    assert record["model"] == identify(model, BYTES).model
    assert record["tokenizer"] == BYTES.fingerprint
    assert store.load("a", model, BYTES).tokens.tolist() == PROMPT
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    before = os.umask(0)
    os.umask(before)
    return before


@pytest.mark.parametrize("case", ["cosformer2 2", "llama 0"])
def test_a_sequence_of_a_batch_is_saved_without_its_neighbours(store, case):
    """Caches of a batch are padded to its longest sequence; what goes on from the file is what goes on alone."""
    model = tiny(case)
    prompts = [PROMPT[:30], PROMPT[:11], PROMPT]
    with torch.no_grad():
        x, states = read_documents(model, prompts)
        logits = model.logits(x)
    with pytest.raises(ValueError, match="a state of 3 sequences; one is saved"):
        store.save("all", Snapshot(states, logits[1], tuple(prompts[1])), model, BYTES)
    state = fork(states, torch.tensor([1]))
    padded = state._replace(layers=tuple(_padded(layer) for layer in state.layers))
    path = store.save("a", Snapshot(padded, logits[1], tuple(prompts[1])), model, BYTES)
    shapes = {x.shape for name, x in safetensors.numpy.load_file(path).items() if name.endswith((".k", ".v"))}
    assert shapes == {(11, 2, 8)}
    resumed, alone = store.resume("a", model, BYTES), begun(model, tokens=prompts[1])
    assert (resumed.length, resumed.last) == (alone.length, alone.last)
    for session in (resumed, alone):
        session.read([1, 2, 3])
    torch.testing.assert_close(resumed.snapshot().logits, alone.snapshot().logits, rtol=1e-4, atol=1e-4)


def _padded(layer):
    """A cache with room behind it, filled with what must not be read."""
    if not isinstance(layer, KeyValues):
        return layer
    return KeyValues(*(torch.nn.functional.pad(x, (0, 0, 0, 0, 0, 5), value=float("nan")) for x in layer))


def test_only_a_linear_state_stays_as_small_as_it_was(store):
    for case, grows in (("tnl 0", False), ("hgrn2 0", False), ("cosformer2 0", False), ("llama 0", True)):
        model, sizes = tiny(case), []
        for length in (10, 1000):
            path = store.save(
                f"{case[0]}{length}", begun(model, tokens=PROMPT[:10] * (length // 10)).snapshot(), model, BYTES
            )
            sizes.append(path.stat().st_size)
        assert (sizes[1] > sizes[0] + 2 * 900 * 16 * 4) if grows else abs(sizes[1] - sizes[0]) < 500


def test_bf16_halves_a_state_and_moves_logits_a_little(store):
    for case in CASES:
        model = tiny(case)
        session = begun(model)
        full = store.save("full", session.snapshot(), model, BYTES, replace=True)
        half = store.save("half", session.snapshot(), model, BYTES, bf16=True, replace=True)
        elements = sum(
            x.nbytes for name, x in safetensors.numpy.load_file(full).items() if name[0] in "el" and name != "logits"
        )
        assert elements / 2 - 200 < full.stat().st_size - half.stat().st_size < elements / 2 + 700
        record = store.show("half")
        assert record.dtype == "bfloat16"
        assert set(record.rounded.values()) == {"float32"}
        loaded = store.load("half", model, BYTES)
        assert all(torch.as_tensor(x).dtype == torch.float32 for layer in loaded.state.layers for x in layer)
        logits = []
        for snapshot in (session.snapshot(), loaded):
            resumed = Session(model, BYTES, snapshot)
            resumed.read([1, 2, 3])
            logits.append(resumed.snapshot().logits)
        error = float((logits[1] - logits[0]).norm() / logits[0].norm())
        assert 0 < error < 0.01, (case, error)


def test_another_model_or_tokenizer_is_refused_and_both_are_named(store, saved):
    other, mine = tiny("hgrn2 2", seed=1), identify(saved, BYTES)
    for model in (other, tiny("tnl 0"), saved.double()):
        theirs = identify(model, BYTES)
        assert theirs.model != mine.model
        with pytest.raises(UserError, match=rf"{mine.model} \(hgrn2, .*{theirs.model}") as error:
            store.load("a", model, BYTES)
        assert "\n" not in str(error.value)
    bpe = train_bpe(["some text"], 270)
    with pytest.raises(UserError, match=rf"tokenizer {BYTES.fingerprint} \(byte\).*{bpe.fingerprint} \({bpe.name}\)"):
        store.load("a", tiny("hgrn2 2"), bpe)


def test_the_hash_is_of_the_weights_and_follows_them():
    model = tiny("cosformer2 0")
    first = model_hash(model)
    assert first == model_hash(model) == model_hash(tiny("cosformer2 0"))
    with torch.no_grad():
        model.blocks[1].mlp.down_proj.weight[3, 5] += 1e-6
    changed = model_hash(model)
    assert changed != first
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model(torch.tensor([[1, 2]]), torch.tensor([[2, 3]])).loss.sum().backward()
    optimizer.step()
    assert model_hash(model) not in (first, changed)


@pytest.mark.slow
def test_a_damaged_file_is_one_line_or_the_same_state(store, saved):
    path, whole = store.path("a"), store.load("a", saved, BYTES)
    content, draw = path.read_bytes(), random.Random(1)
    head = 8 + int.from_bytes(content[:8], "little")
    for size in (0, 1, 8, 100, head, len(content) // 2, len(content) - 1):
        path.write_bytes(content[:size])
        with pytest.raises(UserError, match=r"a\.safetensors: damaged or not a state") as error:
            store.load("a", saved, BYTES)
        assert "\n" not in str(error.value)
    refused = 0
    for place in [*range(8), *draw.sample(range(head), 150), *draw.sample(range(head, len(content)), 100)]:
        path.write_bytes(content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :])
        try:
            loaded = store.load("a", saved, BYTES)
        except UserError as error:
            refused += str(path) in str(error) and "\n" not in str(error)
        else:
            torch.testing.assert_close(loaded, whole, rtol=0, atol=0)
    assert refused > 240
    path.write_bytes(content + b"more")
    with pytest.raises(UserError, match="damaged or not a state"):
        store.show("a")


def test_foreign_files_are_refused_and_passed_over_in_the_list(store, saved, caplog):
    store.path("text").write_text("{}")
    safetensors.numpy.save_file({"x": safetensors.numpy.load_file(store.path("a"))["logits"]}, store.path("weights"))
    store.path("folder").mkdir()
    os.mkfifo(store.path("pipe"))  # which nobody writes to
    for name, problem in (
        ("pipe", "not a file"),
        ("text", "damaged"),
        ("weights", "not a state that linscale saved"),
        ("folder", "not a file"),
    ):
        with pytest.raises(UserError, match=problem):
            store.load(name, saved, BYTES)
    assert list(store.list()) == ["a"]
    assert store.names() == ("a", "folder", "pipe", "text", "weights")
    assert caplog.text.count("passing over a damaged state") == 4


def test_a_newer_format_is_refused(store, saved):
    with safe_open(store.path("a"), framework="np") as file:
        record = {**json.loads(file.metadata()["linscale_state"]), "format": 2}
    tensors = safetensors.numpy.load_file(store.path("a"))
    safetensors.numpy.save_file(tensors, store.path("b"), metadata={"linscale_state": json.dumps(record)})
    with pytest.raises(UserError, match="a state of format 2; this linscale reads format 1"):
        store.load("b", saved, BYTES)


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../a", "a/b", "/etc/a", ".a", "a\n", "a b", "ä", "a\0", "x" * 101, "-a"]
)
def test_a_name_cannot_leave_the_folder(store, saved, name):
    snapshot = store.load("a", saved, BYTES)
    for use in (
        lambda: store.save(name, snapshot, saved, BYTES, replace=True), lambda: store.load(name, saved, BYTES),
        lambda: store.fork("a", name), lambda: store.fork(name, "b"), lambda: store.delete(name),
        lambda: store.show(name),
    ):  # fmt: skip
        with pytest.raises(UserError, match=r"state name .*: expected 1 to 100 letters"):
            use()
    assert store.names() == ("a",)


def test_names_are_not_overwritten_and_what_is_missing_is_said(store, saved):
    snapshot = begun(saved, tokens=[1, 2]).snapshot()
    with pytest.raises(UserError, match="state 'a': there already"):
        store.save("a", snapshot, saved, BYTES)
    assert store.show("a").tokens == len(PROMPT)
    store.fork("a", "b")
    store.save("a", snapshot, saved, BYTES, replace=True)
    assert (store.show("a").tokens, store.show("b").tokens) == (2, len(PROMPT))
    with pytest.raises(UserError, match="state 'b': there already"):
        store.fork("a", "b")
    store.delete("a")
    for use in (
        lambda: store.show("a"),
        lambda: store.load("a", saved, BYTES),
        lambda: store.delete("a"),
        lambda: store.fork("a", "c"),
    ):
        with pytest.raises(UserError, match=r"state 'a': not in .*states, which has b$"):
            use()
    assert list(store.list()) == ["b"]
    with pytest.raises(UserError, match="which has none"):
        StateStore(store.folder / "none").show("a")


def test_of_several_writers_of_one_name_one_wins(store):
    model, outcomes = tiny("tnl 0"), []
    snapshot = begun(model).snapshot()

    def save():
        try:
            outcomes.append(StateStore(store.folder).save("a", snapshot, model, BYTES))
        except UserError as error:
            outcomes.append(str(error))

    threads = [threading.Thread(target=save) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum("there already" in str(outcome) for outcome in outcomes) == 7
    assert store.load("a", model, BYTES).length == len(PROMPT)


@pytest.mark.slow
def test_a_kill_during_a_save_leaves_no_half_file(store):
    """Killed between the last byte of its sixth state and the moment at which that gets the name."""
    model = tiny("hgrn2 0")
    words = [sys.executable, "-c", SETUP + HANG + SAVE_FOREVER, store.folder]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as child:
        assert [child.stdout.readline() for _ in range(6)] == ["2\n", "3\n", "4\n", "5\n", "6\n", "hanging\n"]
        with pytest.raises(filelock.Timeout):
            filelock.FileLock(store.folder / ".lock", timeout=0).acquire()
        child.send_signal(signal.SIGKILL)
    assert sorted(path.suffix for path in store.folder.iterdir()) == ["", ".safetensors", ".tmp"]
    assert store.names() == ("kept",)
    assert store.load("kept", model, BYTES).length == 5
    store.save("b", begun(model).snapshot(), model, BYTES)  # and what was left half is gone
    assert sorted(path.name for path in store.folder.iterdir()) == [".lock", "b.safetensors", "kept.safetensors"]


def test_what_cannot_be_written_is_one_line_and_leaves_what_was(store, saved, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("linscale.generate.saved_state.os.fsync", full)
    with pytest.raises(UserError, match=r"cannot write the state \(.*No space left.*nothing was left half"):
        store.save("a", begun(saved, tokens=[1]).snapshot(), saved, BYTES, replace=True)
    assert store.load("a", saved, BYTES).length == len(PROMPT)
    assert not list(store.folder.glob(".*.tmp"))
    (store.folder / "file").write_text("")
    with pytest.raises(UserError, match="a file is in the way"):
        StateStore(store.folder / "file").save("a", begun(saved).snapshot(), saved, BYTES)


def test_states_are_in_the_run_folder(tmp_path):
    assert states_folder(tmp_path / "run") == tmp_path / "run" / "states"
    assert states_folder(tmp_path / "run" / "checkpoints" / "step_00000001") == tmp_path / "run" / "states"
