"""linscale serve: a trained model behind the OpenAI API."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from linscale.cli.output import print_note
from linscale.cli.session import Store, open_store
from linscale.config import UserError
from linscale.distributed import cores, limit_threads
from linscale.generate.engine_config import EngineConfig
from linscale.serve.options import ServeOptions

if TYPE_CHECKING:
    import torch

NEEDED = ("fastapi", "uvicorn", "prometheus_client")
Port = Annotated[int, tyro.conf.arg(metavar="PORT")]


def serve(
    path: Annotated[Path, tyro.conf.Positional],
    *,
    host: str = "127.0.0.1",
    port: Port = 8000,
    api_key_file: Path | None = None,
    device: Literal["cpu", "cuda"] | None = None,
    engine: Annotated[EngineConfig, tyro.conf.OmitArgPrefixes] = EngineConfig(),  # noqa: B008
    options: Annotated[ServeOptions, tyro.conf.OmitArgPrefixes, tyro.conf.UseAppendAction] = ServeOptions(),  # noqa: B008
    store: Store = None,
) -> None:
    """Serve a trained model by the OpenAI API: /v1/completions, /v1/chat/completions, and saved states at /v1/states.

    It answers this machine alone unless --host says otherwise. SIGTERM lets running texts end, and takes no new ones.

    Args:
        path: A run folder, or one of its checkpoints.
        host: The address to listen at; 0.0.0.0 is all of this machine's.
        port: 0 takes a free one.
        api_key_file: A file of keys, one a line, of which clients must give one.
        device: By default a GPU where there is one.
        engine: How many texts run at once, and in what precision.
        options: What clients may ask for.
    """
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise UserError(f"{', '.join(missing)}: not installed; pip install 'linscale[serve]'")
    if not 0 <= port <= 65535:
        raise UserError(f"port = {port}: expected 0 to 65535")
    options = _completed(options, path, api_key_file)
    states = open_store(path, store)

    from linscale.checkpoint import load
    from linscale.generate.engine import Engine
    from linscale.generate.identity import identify
    from linscale.generate.jinja_template import load_chat_template
    from linscale.generate.worker import Worker
    from linscale.serve.app import create_app
    from linscale.serve.limits import names_of
    from linscale.serve.process import listen, run

    bound = listen(host, port)
    with bound:
        limit_threads(cores())
        model, tokenizer = load(path)
        template, identity = load_chat_template(path, tokenizer), identify(model, tokenizer)
        worker = Worker(Engine(model.float().to(_device(device)), tokenizer, engine))
        hosts = names_of(host, options.allowed_host)
        app = create_app(worker, states, options, identity=identity, template=template, hosts=hosts)
        with worker:
            address = f"http://{f'[{host}]' if ':' in host else host}:{bound.getsockname()[1]}"
            run(app, bound, options.drain_s, lambda: print_note(f"serving {options.model_name} at {address}/v1"))


def _completed(options: ServeOptions, path: Path, api_key_file: Path | None) -> ServeOptions:
    """The options with the keys of a file, and a name."""
    keys = (*options.api_key, *([] if api_key_file is None else _keys(api_key_file)))
    if not all(key.strip() and key.isascii() for key in keys):
        raise UserError("api_key: one is empty or not ASCII; expected letters, digits and signs")
    return replace(options, api_key=keys, model_name=options.model_name or _name(path))


def _name(path: Path) -> str:
    """The name of the run that a folder is or is in."""
    resolved = path.resolve()
    return (resolved.parent.parent if resolved.parent.name == "checkpoints" else resolved).name


def _keys(file: Path) -> list[str]:
    try:
        keys = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"api_key_file = {str(file)!r}: cannot be read ({error})") from None
    if not keys:
        raise UserError(f"api_key_file = {str(file)!r}: no key in it; expected one a line")
    return keys


def _device(name: str | None) -> torch.device:
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("device = 'cuda': no GPU that torch can use on this machine; linscale doctor says why")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
