"""`jepa live`: a checkpoint, sources, and a server in front of them."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Callable
from pathlib import Path

from jepa import checkpoint
from jepa.build import build_as
from jepa.data.world import World
from jepa.errors import InputError, needs_extra
from jepa.evaluation.provenance import device_of
from jepa.live.configs import LiveConfig
from jepa.live.engine import Engine
from jepa.live.recordings import Recordings
from jepa.live.saving import Saver
from jepa.live.server import LOOPBACK, Server
from jepa.live.session import Changes, Setup
from jepa.models.vl_jepa import VLJEPA
from jepa.results import StreamEvaluation, check_folder

with needs_extra("live"):
    import uvicorn
    import websockets  # noqa: F401 (uvicorn takes it for the page's pushed frames)

_GRACE = 5  # seconds that requests get to end


def run(config: LiveConfig) -> None:
    """Serves until it is interrupted.

    Raises:
        InputError: a bad checkpoint, source, policy or trigger, or an address that cannot be bound.
    """
    with bind(config.host, config.port) as listening:
        server = make(config)
        try:
            asyncio.run(serve(server, listening, lambda url: print(f"live: {url}", flush=True)))
        finally:
            server.engine.stop()


def make(config: LiveConfig) -> Server:
    """The server of a configuration with its first sessions; nothing is computed yet."""
    folder = Path(config.checkpoint)
    trained, device = checkpoint.read_config(folder), device_of(config.accelerator)
    output = check_folder(Path(config.output or folder.parent / "live"))
    model = checkpoint.load(folder)
    if not isinstance(model, VLJEPA):
        raise InputError(f"checkpoint must be of vl_jepa, got one of {trained['variant']}: {folder}")
    model.to(device).requires_grad_(False)
    model.slots(config.step_rate_hz)  # raises for a rate that does not fit
    setup = Setup(
        model,
        config.policies,
        config.step_rate_hz,
        _recordings(config, folder),
        config.false_alarms_per_hour,
        config.keep_seconds,
    )
    first = Changes(
        policy=config.policy,
        cache_threshold=-1.0 if config.cache_threshold is None else config.cache_threshold,
        uniform_rate_hz=min(config.uniform_rate_hz, config.step_rate_hz),
        triggers=[setup.watch(sentence) for sentence in config.triggers],
    )
    world = build_as(World, "world", trained["world"])
    engine = Engine(setup, world, config.limits.sessions)
    for source in [config.source] if isinstance(config.source, str) else config.source:
        engine.add(source, first, query=config.query, fast=config.fast)
    near = config.host in LOOPBACK
    return Server(
        engine,
        Saver(model, device, folder, trained, world, config.model_dump(mode="json", exclude={"token"})),
        output,
        first,
        config.query,
        config.allow_sources,
        config.limits,
        config.token if near else config.token or secrets.token_urlsafe(16),
        LOOPBACK if near else None,
    )


def bind(host: str, port: int) -> socket.socket:
    """A listening socket."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise InputError(f"{host}:{port} must be a free address of this machine, got: {error.strerror}") from None


async def serve(
    server: Server, listening: socket.socket, told: Callable[[str], None], stop: Callable[[], bool] = lambda: False
) -> None:
    """Serves until a signal, or until `stop` says so; `told` gets the address of the page once it is there."""
    host, port = listening.getsockname()[:2]
    most = server.limits.frame_bytes + 1024
    settings = uvicorn.Config(
        server.app(),
        log_level="warning",
        access_log=False,  # it would hold tokens
        server_header=False,
        ws_max_size=most,
        timeout_graceful_shutdown=_GRACE,
    )
    http = uvicorn.Server(settings)

    async def end() -> None:
        while not (http.should_exit or stop()):
            await asyncio.sleep(0.05)
        http.should_exit = True
        server.close()

    ending = asyncio.create_task(end())
    server.engine.start()
    told(f"http://{f'[{host}]' if ':' in host else host}:{port}/" + (f"?token={server.token}" if server.token else ""))
    try:
        await http.serve(sockets=[listening])
    finally:
        http.should_exit = True
        await ending


def _recordings(config: LiveConfig, folder: Path) -> Recordings | None:
    """The recorded streams that are named, or those beside the checkpoint if there are any."""
    if config.calibration is not None:
        return Recordings.read(Path(config.calibration), config.step_rate_hz)
    beside = folder.parent / "evaluation"
    there = (beside / StreamEvaluation.file_name).is_file()
    return Recordings.read(beside, config.step_rate_hz) if there else None
