"""The configuration of `jepa live`."""

from __future__ import annotations

from pydantic import Field

from jepa.config import Accelerator, Config, Count, Natural, NonNegative, PolicyConfig, Positive


class LimitsConfig(Config):
    """What clients may ask for. More is refused with the status 413 (size), 429 (rate, number) or 422 (the rest)."""

    sessions: Count = 8
    readers: Count = 32  # of events, all sessions together
    frame_bytes: Count = 4 * 2**20
    frames_per_second: Positive = 60.0  # pushed to a session
    text_length: Count = 200  # characters of a query or a sentence
    triggers: Natural = 16  # of a session
    saves_per_minute: Positive = 6.0


class LiveConfig(Config):
    """A server of live streams; `source`, `query`, `policy` and `triggers` are those of the sessions it begins with."""

    checkpoint: str
    source: str | list[str] = "world"  # world, webcam, stdin:<width>x<height>@<fps>, push, a URL or a file
    fast: bool = False  # files and the world as fast as they can be decoded, without dropping frames
    query: str = "what happens?"
    policy: str = "gate"
    cache_threshold: NonNegative | None = 0.05  # on 1 - cos; null: no cache
    uniform_rate_hz: Positive = 1.0  # of the uniform decoding that is compared with
    step_rate_hz: Positive = 2.0
    triggers: list[str] = []
    false_alarms_per_hour: Positive = 1.0  # that triggers are calibrated to
    calibration: str | None = None  # folder of the evaluation with the recorded streams; null: beside the checkpoint
    keep_seconds: Positive = 3600.0  # of a stream, for saving
    output: str | None = None  # folder for saved sessions; null: `live` beside the checkpoint
    host: str = "127.0.0.1"
    port: int = Field(8000, ge=0, le=65535)  # 0: any free one
    token: str | None = None  # that clients must give; null: none on 127.0.0.1, else a new one, which is printed
    allow_sources: list[str] = ["world", "push"]  # through the API; one that ends in / or : allows what begins with it
    limits: LimitsConfig = LimitsConfig()
    accelerator: Accelerator = "auto"
    policies: dict[str, PolicyConfig]  # to choose from; the parameter of `policy` is the default
