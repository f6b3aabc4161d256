"""The kernels compile for a GPU, on a machine that has none: Triton needs its target named, and nothing is launched."""

import subprocess
import sys

import pytest

BEGINNING = """
import re
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver

class Hopper:
    get_current_target = staticmethod(lambda: GPUTarget("cuda", 90, 32))
    get_current_device = staticmethod(lambda: 0)
    get_current_stream = staticmethod(lambda device=None: 0)

driver.set_active(Hopper())
from linscale.ops.launch import Launch

def compile_only(work, pieces, tensors):
    options = {**work.constants, "num_warps": work.warps, "num_stages": work.stages}
    built = work.kernel.warmup(*tensors, *work.numbers, grid=(pieces * work.programs,), **options)
    assert built.metadata.shared <= 232448, (work.kernel.__name__, built.metadata.shared)  # bytes a program may have
    # A thread's number times 2^24 and more is no address: half of a vector that has run over into the other half.
    factors = re.findall(r"mul\\.wide\\.u32\\s+%rd\\d+, %r\\d+, (\\d+);", built.asm["ptx"])
    assert all(int(factor) < 1 << 24 for factor in factors), (work.kernel.__name__, factors)
    print(work.kernel.__name__)

Launch.__call__ = compile_only
"""
DECAY = """
from linscale.ops.decay_attention import hopper, passes
from linscale.ops.decay_attention.layout import Call
hopper.multiprocessors = lambda device: 132
KINDS = {"head": (16,), "token": (1, 4096, 16), "channel": (1, 4096, 16, None)}
for obstacle, dtype, width in (("not now", torch.float32, 64), (None, torch.bfloat16, 128)):
    hopper.obstacle = lambda device: obstacle
    for kind in ("head", "token", "channel"):
        q, k, v = (torch.empty(1, 4096, 16, width, dtype=dtype) for _ in range(3))
        g = torch.empty([size or width for size in KINDS[kind]], dtype=torch.float32)
        call = Call(q, k, v, g, None, 1.0)
        saved = passes.run_forward(call, None, True)[2]
        passes.run_backward(call, v, saved, None, None, None, kind in ("token", "channel"))
"""
OTHERS = """
from linscale.ops.delta_rule import kernel as delta
from linscale.ops.linear_scan import kernel as scan
from linscale.ops.window_attention import kernel as windows
for width, decay, dtype in ((64, True, torch.bfloat16), (128, False, torch.bfloat16), (128, True, torch.float32)):
    q, k, v = (torch.empty(1, 1024, 4, width, dtype=dtype) for _ in range(3))
    beta, state = torch.empty(1, 1024, 4), torch.empty(1, 4, width, width)
    part = delta.KernelSegment((q, k, v, beta, beta if decay else None), state, None, 64, 1.0)
    part.output()
    part.backward(v, state)

# Packed, three channels, two segments: LLVM made a wrong product of this once, see first_steps in the kernels.
scan.FILL = 1 << 12
x, decay, dh = (torch.rand(1, 557, 3, dtype=torch.bfloat16) for _ in range(3))
state, dfinal, cu = torch.rand(4, 3), torch.rand(4, 3), torch.tensor([0, 1, 2, 224, 557], dtype=torch.int32)
h, _ = scan.scan(x, decay, state, cu, final=True, steps=scan.STEPS)
scan.scan_backward(dh, dfinal, h, decay, state, cu)

class Windows:
    def __init__(self, kernel):
        self.kernel = kernel
    def __getitem__(self, grid):
        def run(*given, **options):
            assert self.kernel.warmup(*given, grid=grid, **options).metadata.shared <= 232448
            print(self.kernel.__name__)
        return run

windows.window_kernel, windows.window_grads_kernel = map(Windows, (windows.window_kernel, windows.window_grads_kernel))
for tokens, width, dtype in ((128, 128, torch.bfloat16), (2, 20, torch.float32)):
    qkv, turns = torch.empty(4, tokens, 6 * width, dtype=dtype, requires_grad=True), torch.empty(2, tokens, width // 2)
    windows.attend(qkv, 2, turns, 0.1, torch.zeros(1, dtype=torch.int64)).sum().backward()
"""
DECODE = """
from linscale.generate import step
from linscale.models import MIXERS, LinearizedConfig, build_model
from linscale.ops.decode import kernel
kernel.early = lambda device: True
step._operators = lambda *given: kernel
for mixer, width, slots in (("delta", 64, 1), ("gated", 64, 64), ("tnl", 128, 64)):
    shape = {"vocab_size": 64, "d_model": 2 * width, "head_dim": width, "n_kv_heads": 1, "n_layers": 2, "d_ff": 128}
    model = build_model(LinearizedConfig(**shape, linear=MIXERS[mixer], softmax_layers=(1,))).eval()
    step.DecodingStep(model, slots, 32, dtype=torch.bfloat16, state_dtype=torch.float32).run()
"""
DECAY_KERNELS = (
    "walk_kernel walk_grads_kernel states_kernel join_kernel output_kernel grads_kernel value_grad_kernel "
    "token_grads_kernel hopper_walk_kernel hopper_grads_kernel hopper_channel_kernel hopper_channel_states_kernel "
    "hopper_channel_grads_kernel"
)
OTHER_KERNELS = (
    "prepare_kernel delta_walk_kernel inflow_kernel value_grads_kernel delta_grads_kernel totals_kernel "
    "forward_kernel backward_kernel window_kernel window_grads_kernel"
)


DECODE_KERNELS = "project_kernel convolve_kernel linear_mix_kernel attend_kernel"
PROGRAMS = {"decay": (DECAY, DECAY_KERNELS), "others": (OTHERS, OTHER_KERNELS), "decode": (DECODE, DECODE_KERNELS)}


@pytest.mark.slow
@pytest.mark.parametrize(("program", "kernels"), PROGRAMS.values(), ids=PROGRAMS)
def test_every_kernel_compiles_for_hopper(program, kernels, tmp_path, request):
    """What is compiled is kept from run to run: a kernel is compiled again when it, or Triton, has changed."""
    pytest.importorskip("triton", reason="Triton is made for Linux alone")
    pytest.importorskip("triton.backends.nvidia", reason="Triton was built for another maker's GPUs")
    kept = getattr(request.config, "cache", None)
    folder = str(kept.mkdir("triton") if kept else tmp_path)
    cache = f"import triton; triton.knobs.cache.dir = {folder!r}\n"
    run = subprocess.run([sys.executable, "-c", cache + BEGINNING + program], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-4000:]
    assert set(run.stdout.split()) >= set(kernels.split())
